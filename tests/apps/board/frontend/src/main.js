import "./style.css";

const app = document.querySelector("#app");
const answer = await fetch("/api/v1/cards/");
const { data, count } = await answer.json();
const heading = document.createElement("h1");
heading.textContent = `${count} cards`;
const list = document.createElement("ul");
list.style.listStyle = "square";
for (const card of data) {
  const item = document.createElement("li");
  item.textContent = card.title;
  list.append(item);
}
app.replaceChildren(heading, list);
