// Window and level of the displayed image: a linear filter over the picture, which leaves its pixels as they are.
import { state } from "./service_state.js";

const $ = (id) => document.getElementById(id);
const NEUTRAL = { level: 50, width: 100 }; // percent of the grey range
const [LEAST_WIDTH, MOST_WIDTH] = [2, 200];

/** Grey values from level - width / 2 to level + width / 2 are spread over the whole range. */
function apply() {
  const { level, width } = state.window;
  const neutral = level === NEUTRAL.level && width === NEUTRAL.width;
  for (const channel of $("window").querySelectorAll("feFuncR, feFuncG, feFuncB")) {
    channel.setAttribute("slope", 100 / width);
    channel.setAttribute("intercept", 0.5 - level / width);
  }
  $("row").classList.toggle("windowed", !neutral);
  $("window-reset").disabled = neutral;
  for (const name of ["level", "width"]) {
    $(`window-${name}`).value = state.window[name];
    $(`window-${name}-shown`).value = `${Math.round(state.window[name])} %`;
  }
}

export function setWindow(level, width) {
  state.window = { level: Math.min(100, Math.max(0, level)), width: Math.min(MOST_WIDTH, Math.max(LEAST_WIDTH, width)) };
  apply();
}

export const moveWindow = (level, width) => setWindow(state.window.level + level, state.window.width + width);

export function listenWindow() {
  for (const name of ["level", "width"]) {
    $(`window-${name}`).addEventListener("input", (event) => {
      const { level, width } = { ...state.window, [name]: Number(event.target.value) };
      setWindow(level, width);
    });
  }
  $("window-reset").addEventListener("click", () => setWindow(NEUTRAL.level, NEUTRAL.width));
  apply();
}
