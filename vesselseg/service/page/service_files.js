// Files from the chooser, the clipboard and drops.
const $ = (id) => document.getElementById(id);

/** add(files). */
export function listenFiles(add) {
  const choose = () => $("files").click();
  $("add").addEventListener("click", choose);
  $("welcome-add").addEventListener("click", choose);
  $("files").addEventListener("change", () => { add([...$("files").files]); $("files").value = ""; });
  addEventListener("paste", (event) => {
    const files = [...(event.clipboardData?.files ?? [])];
    if (!files.length) return;
    event.preventDefault();
    add(files);
  });
  const dropping = (on) => document.body.classList.toggle("drop", on);
  addEventListener("dragover", (event) => { event.preventDefault(); dropping(event.dataTransfer.types.includes("Files")); });
  addEventListener("dragleave", (event) => event.relatedTarget || dropping(false));
  addEventListener("drop", (event) => { event.preventDefault(); dropping(false); add([...event.dataTransfer.files]); });
}
