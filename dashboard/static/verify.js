// A picture dropped anywhere on the page, or chosen, is sent at once.
const form = document.getElementById("drop");
const input = document.getElementById("file");

function send() {
  if (!input.files.length) return;
  form.classList.add("busy");
  form.requestSubmit();
}

input.addEventListener("change", send);
document.addEventListener("dragover", (event) => {
  event.preventDefault();
  form.classList.add("over");
});
document.addEventListener("dragleave", (event) => event.relatedTarget || form.classList.remove("over"));
document.addEventListener("drop", (event) => {
  event.preventDefault();
  form.classList.remove("over");
  if (!event.dataTransfer.files.length) return;
  input.files = event.dataTransfer.files;
  send();
});
