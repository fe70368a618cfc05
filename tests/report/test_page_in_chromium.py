"""The page in a real browser: figures are drawn, nothing is wider than a phone, nothing fails."""

import json
import re
import shutil
import subprocess

import pytest

from dynprune.report.page import render

CHROMIUM = shutil.which("chromium") or shutil.which("chromium-browser")
FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-quic",
    "--no-first-run",
    "--disable-background-networking",
    "--disable-component-update",
    "--disable-sync",
    "--enable-logging=stderr",
    "--virtual-time-budget=2000",
)
FIGURES = ("headline", "layers", "accuracy", "types", "overlap", "executed")

# Measures the page in frames as wide as a phone and as a desk, and leaves the result in its title.
PROBE = """<!doctype html><html><head><title>waiting</title></head><body><script>
const found = {};
function look(width) {
  return new Promise(done => {
    const frame = document.createElement("iframe");
    frame.style.width = width + "px";
    frame.style.height = "900px";
    frame.srcdoc = PAGE;
    frame.onload = () => {
      const page = frame.contentDocument;
      const boxes = {};
      for (const figure of page.querySelectorAll("figure")) {
        const drawn = [...figure.querySelectorAll(".row svg, figure > svg")];
        boxes[figure.id] = drawn.filter(svg => svg.getBoundingClientRect().width > 50
          && svg.querySelector("rect, path")).length;
      }
      const images = [...page.images];
      found[width] = {
        figures: boxes,
        overflow: page.documentElement.scrollWidth - page.documentElement.clientWidth,
        pictures: images.filter(image => image.complete && image.naturalWidth > 0).length,
        small: [...page.querySelectorAll("svg text, td, p, figcaption, .number")]
          .filter(e => parseFloat(frame.contentWindow.getComputedStyle(e).fontSize) < 11).length,
        paper: frame.contentWindow.getComputedStyle(page.body).backgroundColor,
        ink: frame.contentWindow.getComputedStyle(page.body).color,
      };
      done();
    };
    document.body.appendChild(frame);
  });
}
look(390).then(() => look(1200)).then(() => { document.title = JSON.stringify(found); });
</script></body></html>"""

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason="no chromium to open the page with")


def browse(profile, address, *flags):
    """Open an address; give the page as it stands then, and what the console said."""
    command = [CHROMIUM, *FLAGS, f"--user-data-dir={profile}", *flags, "--dump-dom", address]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout, [line for line in done.stderr.splitlines() if ":CONSOLE" in line]


@pytest.fixture(scope="module")
def html(measured):
    return render(measured.found)


def test_the_page_opens_and_its_console_stays_silent(html, tmp_path) -> None:
    page = tmp_path / "page.html"
    page.write_text(html)
    seen, console = browse(tmp_path / "profile", page.as_uri())
    assert console == []
    for name in FIGURES:
        assert f'id="figure-{name}"' in seen


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_figures_are_drawn_and_fit_a_phone_in_both_themes(html, tmp_path, scheme) -> None:
    # The probe is a script, which the page's own policy forbids, so this copy goes without.
    text = re.sub(r'<meta http-equiv="Content-Security-Policy"[^>]*>', "", html)
    probe = tmp_path / "probe.html"
    quoted = json.dumps(text).replace("<", "\\u003c")
    probe.write_text(PROBE.replace("PAGE", quoted))
    flag = f"--blink-settings=preferredColorScheme={1 if scheme == 'light' else 0}"
    seen, console = browse(tmp_path / "profile", probe.as_uri(), flag)
    assert console == []
    title = re.search("<title>(.*?)</title>", seen, re.DOTALL)[1].replace("&quot;", '"')
    found = json.loads(title)
    for width in ("390", "1200"):
        at = found[width]
        assert set(at["figures"]) == {f"figure-{name}" for name in FIGURES}
        assert min(at["figures"].values()) >= 1
        assert at["overflow"] == 0
        assert at["pictures"] == 12
        assert at["small"] == 0
        paper, ink = (
            sum(map(int, re.findall(r"\d+", at[key])[:3])) / 3 for key in ("paper", "ink")
        )
        assert (paper > 200 and ink < 60) if scheme == "light" else (paper < 60 and ink > 200)
