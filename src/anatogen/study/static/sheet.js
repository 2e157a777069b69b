// What lies over the page while no case is read: instructions, help, a pause, the end.

export class Sheet {
  constructor() {
    this.dialog = document.getElementById("sheet");
    this.part = (name) => document.getElementById(`sheet-${name}`);
    this.part("button").addEventListener("click", () => this.dialog.close());
  }

  get isOpen() {
    return this.dialog.open;
  }

  /**
   * Shows a sheet until the reader closes it.
   * @param {{eyebrow: string, title: string, text: string, button: string, keys?: boolean, curtain?: boolean}} what
   *     `curtain`: nothing of the page is to be seen behind it.
   */
  async show({ eyebrow, title, text, button, keys = false, curtain = false }) {
    this.part("eyebrow").textContent = eyebrow;
    this.part("title").textContent = title;
    this.part("button").textContent = button;
    this.part("keys").hidden = !keys;
    this.setText(text);
    this.dialog.classList.toggle("curtain", curtain);
    if (!this.dialog.open) this.dialog.showModal();
    this.part("button").focus();
    await new Promise((resolve) => this.dialog.addEventListener("close", resolve, { once: true }));
  }

  setText(text) {
    this.part("text").textContent = text;
    this.part("text").hidden = text === "";
  }
}
