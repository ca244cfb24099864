(() => {
  const block = document.getElementById("listening");
  const models = [...block.querySelectorAll("#models button")];
  const plays = [...block.querySelectorAll(".play")];
  const show = name => {
    if (!models.some(button => button.dataset.model === name)) return false;
    for (const button of models)
      button.setAttribute("aria-pressed", button.dataset.model === name);
    for (const row of block.querySelectorAll("tr[data-model]"))
      row.hidden = row.dataset.model !== name;
    return true;
  };
  const sound = button => button.parentElement.querySelector("audio");
  const draw = () => plays.forEach(button =>
    button.firstElementChild.innerHTML = sound(button).paused ? "&#9654;" : "&#10074;&#10074;");
  for (const button of models) button.onclick = () => show(button.dataset.model);
  for (const button of plays) {
    const audio = sound(button);
    audio.onplay = audio.onpause = audio.onended = draw;
    button.onclick = () => {
      plays.map(sound).filter(other => other !== audio).forEach(other => other.pause());
      if (!audio.paused) return audio.pause();
      audio.currentTime = 0;
      audio.play();
    };
  }
  block.addEventListener("keydown", event => {
    const row = event.target.closest(".play") ? plays : models;
    const step = {ArrowDown: 1, ArrowRight: 1, ArrowUp: -1, ArrowLeft: -1}[event.key];
    const next = step && row[row.indexOf(event.target) + step];
    if (next) { next.focus(); event.preventDefault(); }
  });
  const named = () => show(decodeURIComponent(location.hash.replace("#trial-", "")));
  if (!named()) show(models[0].dataset.model);
  addEventListener("hashchange", named);
  window.listenTo = name => show(name) && block.scrollIntoView({behavior: "smooth"});
  for (const link of document.querySelectorAll("a[data-listen]"))
    link.onclick = event => { event.preventDefault(); listenTo(link.dataset.listen); };
  const chart = document.getElementById("chart");
  if (chart && chart.on) chart.on("plotly_click", event => {
    const [trial, outcome] = event.points[0].customdata || [];
    if (trial !== undefined) listenTo(outcome ? `${trial}.${outcome}` : `${trial}`);
  });
})();
