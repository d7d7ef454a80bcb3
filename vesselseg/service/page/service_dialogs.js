// Dialogs.

const $ = (id) => document.getElementById(id);

/** The token that the user types, or null. refused: whether a token was refused before. */
export function askToken(refused) {
  const dialog = $("token");
  if (refused) $("token-words").textContent = "The service refused this token.";
  $("token-input").value = "";
  $("token-form").onsubmit = (event) => { event.preventDefault(); dialog.close("given"); };
  $("token-cancel").onclick = () => dialog.close("");
  dialog.returnValue = "";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.onclose = () => resolve(dialog.returnValue === "given" ? $("token-input").value.trim() : null);
  });
}

/** Whether the user confirms that something is removed. */
export function confirmRemoval(text, title) {
  const dialog = $("sure");
  $("sure-title").textContent = title;
  $("sure-words").textContent = text;
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => { dialog.onclose = () => resolve(dialog.returnValue === "yes"); });
}
