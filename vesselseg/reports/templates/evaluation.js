(function () {
  "use strict";

  // The table of all images: a click on a heading sorts; undefined values stay last in both directions.
  const table = document.getElementById("items"), body = table.tBodies[0];
  const headings = Array.from(table.tHead.rows[0].cells);
  function text(row, column) {
    const cell = row.cells[column];
    return cell.dataset.value === undefined ? cell.textContent : cell.dataset.value;
  }
  headings.forEach(function (heading, column) {
    const numeric = heading.classList.contains("num");
    heading.querySelector("button").addEventListener("click", function () {
      const up = heading.getAttribute("aria-sort") !== "ascending", sign = up ? 1 : -1;
      headings.forEach(function (other) { other.setAttribute("aria-sort", "none"); });
      heading.setAttribute("aria-sort", up ? "ascending" : "descending");
      Array.from(body.rows).sort(function (a, b) {
        const x = text(a, column), y = text(b, column);
        if (numeric && (x === "" || y === "")) { return (x === "") - (y === ""); }
        return sign * (numeric ? Number(x) - Number(y) : x.localeCompare(y, undefined, { numeric: true }));
      }).forEach(function (row) { body.appendChild(row); });
    });
  });

  // Images: click or Enter enlarges; + and - zoom, arrows change the image at full view and scroll otherwise, Escape closes.
  const viewer = document.getElementById("viewer"), picture = viewer.querySelector("img");
  const stage = viewer.querySelector(".stage"), caption = viewer.querySelector(".name");
  const buttons = Array.from(document.querySelectorAll("button.zoom"));
  const LARGEST = 6;
  let current = 0, zoom = 1, size = { width: 1, height: 1 };
  function fitting() {
    return Math.min((stage.clientWidth - 8) / size.width, (stage.clientHeight - 8) / size.height);
  }
  // Shows the point (x, y) of the image, as fractions of its size, at (left, top) of the stage.
  function show(level, x, y, left, top) {
    zoom = Math.min(LARGEST, Math.max(1, level));
    const scale = fitting() * zoom, width = size.width * scale, height = size.height * scale;
    picture.style.width = width + "px";
    picture.style.height = height + "px";
    picture.style.cursor = zoom > 1 ? "zoom-out" : "zoom-in";
    stage.scrollLeft = x * width - left;
    stage.scrollTop = y * height - top;
  }
  function step(factor) {
    const box = picture.getBoundingClientRect(), home = stage.getBoundingClientRect();
    const left = stage.clientWidth / 2, top = stage.clientHeight / 2;
    show(zoom * factor, (home.left + left - box.left) / box.width, (home.top + top - box.top) / box.height, left, top);
  }
  function open(index) {
    current = (index + buttons.length) % buttons.length;
    const small = buttons[current].querySelector("img"), coming = new Image();
    if (!viewer.open) {
      picture.style.visibility = "hidden";
      viewer.showModal();
    }
    coming.src = small.src;
    coming.decode().then(function () { // swap image, name and size together once it is decoded
      if (!viewer.open || !buttons[current].contains(small)) { return; }
      picture.src = coming.src;
      picture.alt = caption.textContent = small.alt;
      size = { width: coming.naturalWidth, height: coming.naturalHeight };
      picture.style.visibility = "visible";
      show(1, 0, 0, 0, 0);
    });
  }
  buttons.forEach(function (button, index) {
    button.addEventListener("click", function () { open(index); });
  });
  picture.addEventListener("click", function (event) {
    const box = picture.getBoundingClientRect(), home = stage.getBoundingClientRect();
    const x = (event.clientX - box.left) / box.width, y = (event.clientY - box.top) / box.height;
    show(zoom > 1 ? 1 : 3, x, y, event.clientX - home.left, event.clientY - home.top);
  });
  const actions = {
    larger: function () { step(1.5); },
    smaller: function () { step(1 / 1.5); },
    previous: function () { open(current - 1); },
    next: function () { open(current + 1); },
    close: function () { viewer.close(); },
  };
  viewer.querySelectorAll("[data-action]").forEach(function (button) {
    button.addEventListener("click", actions[button.dataset.action]);
  });
  viewer.addEventListener("close", function () { buttons[current].focus(); });
  const keys = { "+": "larger", "=": "larger", "-": "smaller" };
  viewer.addEventListener("keydown", function (event) {
    const leaf = { ArrowLeft: "previous", ArrowRight: "next" }[event.key];
    if (keys[event.key]) { actions[keys[event.key]](); }
    else if (leaf && zoom === 1) { actions[leaf](); }
    else if (event.key.startsWith("Arrow")) {
      const way = { ArrowLeft: [-80, 0], ArrowRight: [80, 0], ArrowUp: [0, -80], ArrowDown: [0, 80] }[event.key];
      stage.scrollBy(way[0], way[1]);
    } else { return; }
    event.preventDefault();
  });
  window.addEventListener("resize", function () { if (viewer.open) { show(1, 0, 0, 0, 0); } });
})();
