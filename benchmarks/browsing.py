"""A page in headless Chromium, driven over its DevTools protocol by Chromium itself.

No client library: the page measures itself, by a script that is put into a copy of it, and the
browser prints what it found. Frames are counted by `requestAnimationFrame`.
"""

import html
import json
import re
import shutil
import subprocess
import tempfile
from pathlib import Path
from typing import Any

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
PROBE = """<pre id="told"></pre><script>
addEventListener("load", async () => {
  const chart = document.getElementById("chart"), frame = () => new Promise(requestAnimationFrame);
  const loaded = performance.now();
  const slow = async (act, count) => {
    const times = [];
    for (let turn = 0; turn < count; turn++) {
      const began = performance.now();
      await act(turn);
      await frame(); await frame();
      times.push(performance.now() - began);
    }
    return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
  };
  await frame(); await frame();
  const curves = chart.data.map((trace, place) => [trace, place])
    .filter(([trace]) => trace.hoverinfo !== "skip").map(([, place]) => place);
  const zoom = await slow(turn => {
    const share = 0.05 * (turn % 10);
    const [low, high] = chart.layout.xaxis.range;
    return Plotly.relayout(chart, {"xaxis.range": [low * (1 + share), high * (1 - share)]});
  }, 12);
  const hover = await slow(turn => {
    const curve = curves[turn % curves.length];
    const points = chart.calcdata[curve].length;
    Plotly.Fx.hover(chart, [{curveNumber: curve, pointNumber: (turn * 7919) % points}]);
  }, 30);
  document.getElementById("told").textContent = JSON.stringify({loaded, zoom, hover});
});
</script></body>"""


def smoothness(page: Path) -> dict[str, Any]:
    """Milliseconds until the page has loaded, and for a zoom and a hover, two frames included."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        return {"load_ms": None, "zoom_ms": None, "hover_ms": None}
    with tempfile.TemporaryDirectory(prefix="browsing-") as scratch:
        probed = Path(scratch) / "page.html"
        probed.write_text(page.read_text("utf-8").replace("</body>", PROBE), "utf-8")
        command = [
            *(found, "--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000"),
            *("--timeout=60000", f"--user-data-dir={scratch}/browser", "--dump-dom"),
            probed.as_uri(),
        ]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, check=True)  # noqa: S603
    told = re.search(r'<pre id="told">(.*?)</pre>', done.stdout)
    values = json.loads(html.unescape(told[1])) if told and told[1] else {}
    return {f"{name}_ms": values.get(key) for name, key in NAMES.items()}


NAMES = {"load": "loaded", "zoom": "zoom", "hover": "hover"}
