"""A page in headless Chromium, driven over the DevTools protocol: how fast it loads and answers.

A page is smooth while a zoom or a hover is drawn within a few frames; there is no graphics card.
"""

import asyncio
import json
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Any

import aiohttp

BROWSERS = ("chromium", "chromium-browser", "google-chrome")
NOTHING = {"load_ms": None, "zoom_ms": None, "hover_ms": None}
LOADED = """new Promise(done => {
  const look = () => document.querySelector("#chart .main-svg .trace")
    ? requestAnimationFrame(() => done(performance.now())) : setTimeout(look, 20);
  look();
})"""
# Medians of the time until an act has been drawn: the frame after it has begun.
ACTS = """(async () => {
  const chart = document.getElementById("chart"), frame = () => new Promise(requestAnimationFrame);
  const median = async (act, count) => {
    const times = [];
    for (let turn = 0; turn < count; turn++) {
      const began = performance.now();
      await act(turn); await frame(); await frame();
      times.push(performance.now() - began);
    }
    return times.sort((a, b) => a - b)[Math.floor(times.length / 2)];
  };
  const curves = chart.data.map((trace, place) => [trace, place])
    .filter(([trace]) => trace.hoverinfo !== "skip" && trace.x && chart.calcdata)
    .map(([, place]) => place).filter(place => chart.calcdata[place].length > 1);
  const [low, high] = chart.layout.xaxis.range;
  const zoom = await median(turn => {
    const share = 0.04 * (1 + turn % 8);
    return Plotly.relayout(chart, {"xaxis.range": [low + share * high, high * (1 - share)]});
  }, 12);
  await Plotly.relayout(chart, {"xaxis.range": [low, high]});
  const hover = await median(turn => {
    const curve = curves[turn % curves.length];
    const point = (turn * 7919) % chart.calcdata[curve].length;
    Plotly.Fx.hover(chart, [{curveNumber: curve, pointNumber: point}]);
  }, 30);
  return {zoom_ms: zoom, hover_ms: hover};
})()"""


def smoothness(page: Path) -> dict[str, Any]:
    """Milliseconds until the page is drawn, and until a zoom and a hover are; None unmeasured."""
    found = next(filter(None, map(shutil.which, BROWSERS)), None)
    if found is None:
        return NOTHING
    with tempfile.TemporaryDirectory(prefix="browsing-", ignore_cleanup_errors=True) as profile:
        flags = ("--headless", "--no-sandbox", "--disable-gpu", "--window-size=1400,1000")
        port = ("--remote-debugging-port=0", f"--user-data-dir={profile}", "about:blank")
        with subprocess.Popen([found, *flags, *port], stderr=subprocess.DEVNULL) as browser:  # noqa: S603
            try:
                return asyncio.run(_measured(_port(Path(profile)), page))
            finally:
                browser.terminate()


def _port(profile: Path) -> str:
    """Where the browser listens: it notes that once it does."""
    noted = profile / "DevToolsActivePort"
    give_up = time.monotonic() + 60
    while not noted.exists() and time.monotonic() < give_up:
        time.sleep(0.1)
    return noted.read_text().split()[0]


async def _measured(port: str, page: Path) -> dict[str, Any]:
    address = f"http://127.0.0.1:{port}/json/list"
    async with aiohttp.ClientSession() as session:
        async with session.get(address) as answer:
            targets = json.loads(await answer.text())
        target = next(t for t in targets if t["type"] == "page")
        async with session.ws_connect(target["webSocketDebuggerUrl"], max_msg_size=0) as socket:
            await _said(socket, "Page.navigate", url=page.as_uri())
            await asyncio.sleep(0.5)  # until then the old document would answer
            loaded = await _evaluated(socket, LOADED)
            return {"load_ms": loaded, **await _evaluated(socket, ACTS)}


async def _evaluated(socket: Any, expression: str) -> Any:
    words = {"expression": expression, "awaitPromise": True, "returnByValue": True}
    answer = await _said(socket, "Runtime.evaluate", **words)
    return answer["result"]["value"]


async def _said(socket: Any, method: str, **params: Any) -> Any:
    """One command and its answer; events in between are passed over."""
    await socket.send_json({"id": 1, "method": method, "params": params})
    while True:
        message = await socket.receive_json(timeout=120)
        if message.get("id") == 1:
            return message["result"]
