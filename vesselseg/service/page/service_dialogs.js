// Questions to the user.

const $ = (id) => document.getElementById(id);

/** The token that is typed, or null. refused: whether another one was tried before. */
export function askToken(refused) {
  const dialog = $("token");
  if (refused) $("token-words").textContent = "The service refused that token.";
  $("token-input").value = "";
  $("token-form").onsubmit = (event) => { event.preventDefault(); dialog.close("given"); };
  $("token-cancel").onclick = () => dialog.close("");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "given" ? $("token-input").value.trim() : null);
  });
}

/** Whether something is to be lost. */
export function sure(words, title) {
  const dialog = $("sure");
  $("sure-title").textContent = title;
  $("sure-words").textContent = words;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => { dialog.onclose = () => resolve(dialog.returnValue === "yes"); });
}
