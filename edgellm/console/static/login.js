// Says the token, and goes where the browser wanted to go.

const form = document.getElementById("login");
const said = document.getElementById("login-said");

/** A page of this console, with its origin, as paths may begin with two slashes; anything else would lead somebody who logs in to another site. */
function wanted() {
  const next = new URLSearchParams(location.search).get("next") ?? "/";
  const target = new URL(next, location.origin);
  return target.origin === location.origin ? target.href : "/";
}

form.addEventListener("submit", async (event) => {
  event.preventDefault();
  said.textContent = "";
  try {
    const answer = await fetch("/api/v1/login", {
      method: "POST",
      headers: { "content-type": "application/json" },
      body: JSON.stringify({ token: form.elements.token.value }),
    });
    if (answer.ok) {
      location.replace(wanted());
      return;
    }
    said.textContent = (await answer.json()).error.message;
  } catch {
    said.textContent = "the console does not answer";
  }
  form.elements.token.select();
});
