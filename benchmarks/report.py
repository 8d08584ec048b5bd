"""How long until a large report can be used? Its file's size, and a browser's seconds.

    python -m benchmarks.report [--leaves 1000] [--records 512] [--opened 9] [--short]

A made-up run (30 statistics of noise, which does not compress, with distributions) is written as a report, and
chromium opens the file from disk, each time in a fresh profile, at 1400 x 1000 pixels. "ready" is from the call to open
it until every chart in view is drawn and it can be used, "computing" what the page's own thread computed meanwhile, and
"shown" until the heat map stands, which needs no plotly; "click" is from pressing "record before" until every chart in
view shows that.
Medians and quartiles over the times that it was opened; the first, which also starts the browser's processes, is not
counted.

Needs the `tests` extra (pip install -e '.[tests]') and chromium or Google Chrome on the path.
"""

import argparse
import os
import platform
import shutil
import statistics
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
from playwright.sync_api import Browser, sync_playwright

from adamx.diagnostics import metrics, report
from adamx.diagnostics.history import About, History, Leaf

# The page's policy forbids what playwright's wait_for_function does, which is to evaluate text.
READY = """async () => {
  while (!(window.__adamx && window.__adamx.ready)) await new Promise((done) => setTimeout(done, 5));
  return performance.getEntriesByName("adamx:shown")[0].startTime;
}"""


def made_up(leaves: int, records: int, every: int = 10, seed: int = 0) -> History:
    """A run with every statistic, lognormal around its reference, and distributions of 64 records."""
    rng = np.random.default_rng(seed)
    names = [f"layers/{i // 10}/{'abcdefghij'[i % 10]}/kernel" for i in range(leaves)]
    steps, beats = np.arange(1, records + 1) * every, np.arange(1, records * every + 1)
    noise = lambda *shape: np.exp(0.1 * rng.standard_normal(shape)).astype(np.float32)

    def table(metric: metrics.Metric) -> np.ndarray:
        x = noise(records, leaves)
        if metric.scale == "cosine":
            return np.clip(x - 1, -1, 1)
        return np.clip(0.2 * x, 0, 1) if metric.scale == "share" else (metric.reference or 1e-3) * x

    at = steps[np.linspace(0, records - 1, min(64, records)).astype(int)]

    def shares(edges: tuple[float, ...]) -> np.ndarray:
        width = (edges[-1] - edges[0]) / 16
        middle = width * rng.standard_normal((len(at), leaves, 1)) + (edges[-1] + edges[0]) / 2
        return (1 / (1 + np.exp((middle - np.asarray(edges)) / width))).astype(np.float32)

    return History(
        About(tuple(Leaf(name, (64, 64), "float32") for name in names), every, {"b2": 0.999, "eps": 1e-8}),
        steps,
        {name: noise(records) for name in metrics.WHOLE if name not in metrics.PULSE},
        {name: table(metric) for name, metric in metrics.LEAF.items()},
        beats,
        {name: noise(len(beats)) for name in metrics.PULSE},
        at,
        {name: shares(edges) for name, edges in metrics.EDGES.items()},
    )


def opened(browser: Browser, path: Path) -> dict[str, float]:
    """Seconds until it is shown, until it is ready, of which its thread computed, and until a click is answered."""
    context = browser.new_context(viewport={"width": 1400, "height": 1000})
    page = context.new_page()
    tools = context.new_cdp_session(page)
    tools.send("Performance.enable", {"timeDomain": "threadTicks"})
    start = time.perf_counter()
    page.goto(path.as_uri(), wait_until="commit")
    shown = page.evaluate(READY) / 1e3
    ready = time.perf_counter() - start
    taken = {x["name"]: x["value"] for x in tools.send("Performance.getMetrics")["metrics"]}
    start = time.perf_counter()
    page.click("#back")
    page.evaluate("() => window.__adamx.settled()")
    seconds = time.perf_counter() - start
    context.close()
    return {"shown": shown, "ready": ready, "ready, computing": taken["TaskDuration"], "click": seconds}


def machine() -> str:
    """Processor, cores and Python, in a line."""
    cpus = Path("/proc/cpuinfo")
    lines = cpus.read_text().splitlines() if cpus.exists() else []
    model = next((line.partition(": ")[2] for line in lines if line.startswith("model name")), platform.machine())
    return f"{model}, {os.cpu_count()} cores; Python {platform.python_version()}"


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Prints the table; returns bytes, and seconds by name."""
    parser = argparse.ArgumentParser(prog="benchmarks.report", description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("--leaves", type=int, default=1000)
    parser.add_argument("--records", type=int, default=512)
    parser.add_argument("--opened", type=int, default=9, help="times that it is opened, and one before")
    parser.add_argument("--short", action="store_true", help="a small report, opened twice")
    args = parser.parse_args(argv)
    if args.short:
        args.leaves, args.records, args.opened = 40, 64, 2
    browser = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)
    if browser is None:
        parser.error("neither chromium nor google-chrome is on the path; install one of them")
    with tempfile.TemporaryDirectory() as folder, sync_playwright() as p:
        path, history = Path(folder) / "report.html", made_up(args.leaves, args.records)
        start = time.perf_counter()
        report.write(history, path)
        written, size = time.perf_counter() - start, path.stat().st_size
        started = p.chromium.launch(executable_path=browser, args=["--no-sandbox"])
        print(f"{machine()}; chromium {started.version}")
        print(f"{args.leaves:,} leaves x {args.records:,} records: {size / 1e6:.1f} MB, written in {written:.1f} s\n")
        times = [opened(started, path) for _ in range(args.opened + 1)][1:]
        started.close()
    seconds = {name: [one[name] for one in times] for name in times[0]}
    print("| until | seconds, median [quartiles] |\n|---|---|")
    for name, values in seconds.items():
        low, middle, high = statistics.quantiles(values, n=4)
        print(f"| {name} | {middle:.2f} [{low:.2f}, {high:.2f}] |")
    return {"bytes": size, **seconds}


if __name__ == "__main__":
    main(sys.argv[1:])
