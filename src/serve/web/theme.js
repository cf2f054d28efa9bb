/* Dark or light, before anything is painted: this script alone is no module, so that the page waits for it.
 * choice: "light", "dark" or, as long as nobody has chosen, "auto". */
function paint(choice) {
  const dark = choice === "dark" || (choice !== "light" && matchMedia("(prefers-color-scheme: dark)").matches);
  document.documentElement.dataset.theme = dark ? "dark" : "light";
  for (const meta of document.querySelectorAll("meta[name=theme-color]")) meta.content = dark ? "#161310" : "#faf8f5";
}
try {
  paint(localStorage.getItem("llava.theme"));
} catch {
  paint("auto"); /* a browser that keeps nothing */
}
