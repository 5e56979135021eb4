// Narrows the list to the trials whose line holds all words that are typed. Without it everything is simply there.
const box = document.getElementById("filter");
box.style.display = "block";
box.addEventListener("input", () => {
  const words = box.value.toLowerCase().split(/\s+/).filter(Boolean);
  for (const trial of document.querySelectorAll(".trial")) {
    const text = trial.firstElementChild.textContent.toLowerCase();
    trial.hidden = !words.every(word => text.includes(word));
  }
  for (const group of document.querySelectorAll(".group")) {
    group.hidden = words.length > 0 && !group.querySelector(".trial:not([hidden])");
    if (words.length > 0) group.open = true;
  }
});
