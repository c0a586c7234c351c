"""The page in a real browser, if there is one: no overflow, and no message in the console."""

import re
import shutil
import subprocess

import pytest

BROWSER = next(
    filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None
)
FLAGS = (
    "--headless --no-sandbox --disable-gpu --disable-quic --no-first-run"
    " --disable-background-networking --disable-component-update --disable-sync"
    " --disable-dev-shm-usage --allow-file-access-from-files --enable-logging=stderr"
    " --window-size=1400,1000 --virtual-time-budget=4000"
).split()

pytestmark = pytest.mark.skipif(BROWSER is None, reason="no Chromium on this machine")

#: A frame can be as narrow as a phone; the window of a desktop browser cannot.
FRAME = """<!doctype html><meta charset="utf-8"><link rel="icon" href="data:,">
<iframe id="page" src="PAGE" style="width:WIDTHpx;height:900px;border:0"></iframe>
<pre id="out"></pre>
<script>
addEventListener("load", () => {
  const page = document.getElementById("page").contentDocument, root = page.documentElement;
  const out = [...page.querySelectorAll("main *")].filter(e => {
    if (e.closest(".scroll") && !e.classList.contains("scroll")) return false;
    return e.getBoundingClientRect().right > root.clientWidth + 0.5;
  }).map(e => e.tagName + ":" + e.textContent.slice(0, 30));
  const paper = getComputedStyle(page.body).backgroundColor;
  document.getElementById("out").textContent =
    `width=${root.scrollWidth} out=[${out.join(";")}] paper=${paper}`;
});
</script>"""


def browse(report, tmp_path, width, *flags):
    page = report / "index.html"
    frame = tmp_path / "frame.html"
    text = FRAME.replace("PAGE", page.as_uri()).replace("WIDTH", str(width))
    frame.write_text(text, encoding="utf-8")
    profile = tmp_path / "profile"
    command = [BROWSER, *FLAGS, *flags, f"--user-data-dir={profile}", "--dump-dom", frame.as_uri()]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=True)
    found = re.search(r"width=(\d+) out=\[(.*?)\] paper=(rgb\([^)]*\))", done.stdout, re.DOTALL)
    assert found, done.stdout[-2000:] + done.stderr[-2000:]
    console = [line for line in done.stderr.splitlines() if "CONSOLE" in line]
    return int(found[1]), found[2], found[3], console


@pytest.mark.slow
@pytest.mark.parametrize("width", [390, 1280])
def test_nothing_sticks_out_and_the_console_is_silent(hard_report, tmp_path, width):
    scroll, out, _, console = browse(hard_report, tmp_path, width)
    assert scroll <= width
    assert out == ""
    assert console == []


@pytest.mark.slow
def test_dark_mode_is_dark(hard_report, tmp_path):
    def brightness(paper):
        return sum(map(int, re.findall(r"\d+", paper)[:3])) / 3

    light = browse(hard_report, tmp_path, 390)[2]
    dark = browse(hard_report, tmp_path, 390, "--blink-settings=preferredColorScheme=0")[2]
    assert brightness(light) > 230
    assert brightness(dark) < 40


@pytest.mark.slow
def test_the_check_sees_what_sticks_out_and_what_complains(tmp_path):
    page = tmp_path / "index.html"
    page.write_text(
        "<!doctype html><body style='background:white'><main><p style='width:900px'>wide</p></main>"
        "<script>console.error('no')</script>"
    )
    scroll, out, _, console = browse(tmp_path, tmp_path, 390)
    assert scroll > 390
    assert out == "P:wide"
    assert len(console) == 1
