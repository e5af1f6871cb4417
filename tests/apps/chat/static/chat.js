const list = document.getElementById("messages");
const scheme = location.protocol === "https:" ? "wss" : "ws";
let socket;

function show(message) {
  const item = document.createElement("li");
  item.textContent = `${message.name}: ${message.text || ""}`;
  if (message.image) {
    const image = document.createElement("img");
    image.src = message.image;
    item.append(image);
  }
  list.append(item);
}

function connect() {
  socket = new WebSocket(`${scheme}://${location.host}/ws/${encodeURIComponent(room)}`);
  socket.onopen = () => document.body.classList.add("connected");
  socket.onmessage = (event) => show(JSON.parse(event.data));
  socket.onclose = () => setTimeout(connect, 500);
}

function say() {
  const input = document.getElementById("text");
  socket.send(input.value);
  input.value = "";
}

async function share() {
  const form = new FormData();
  form.append("image", document.getElementById("image").files[0]);
  await fetch(`/rooms/${encodeURIComponent(room)}/images`, { method: "POST", body: form });
}

before.forEach(show);
connect();
