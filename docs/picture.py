"""The README's picture: the first screen of a report and its gallery, side by side, as a small PNG.

selftrain run quickstart && selftrain report last --output report.html
python docs/picture.py report.html docs/report.png
"""

import io
import shutil
import sys
import time
from pathlib import Path

from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

SIZE, SCALE, COLOURS, GAP = (1180, 1150), 0.72, 128, 24
TOPS = ("0", "document.getElementById('labels').offsetTop - 20")  # where each half begins


def photographed(report: Path) -> list[Image.Image]:
    """A screen of each half."""
    options = webdriver.ChromeOptions()
    options.binary_location = str(shutil.which("chromium"))
    for flag in (
        "--headless",
        "--no-sandbox",
        "--disable-gpu",
        "--hide-scrollbars",
        f"--window-size={SIZE[0]},{SIZE[1]}",
    ):
        options.add_argument(flag)
    driver = webdriver.Chrome(options=options, service=Service(shutil.which("chromedriver")))
    metrics = {"width": SIZE[0], "height": SIZE[1], "deviceScaleFactor": 1, "mobile": False}
    driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
    driver.get(report.absolute().as_uri())
    screens = []
    for top in TOPS:
        driver.execute_script(f"document.documentElement.style.scrollBehavior = 'auto'; scrollTo(0, {top})")
        time.sleep(3)  # the charts are drawn when their place has its width
        screens.append(Image.open(io.BytesIO(driver.get_screenshot_as_png())).convert("RGB"))
    driver.quit()
    return screens


def main() -> None:
    """Report in, picture out."""
    report, output = map(Path, sys.argv[1:])
    screens = [
        one.resize([round(SCALE * side) for side in SIZE], Image.Resampling.LANCZOS) for one in photographed(report)
    ]
    width, height = screens[0].size
    picture = Image.new("RGB", (2 * width + GAP, height), "#d8dadb")
    for number, screen in enumerate(screens):
        picture.paste(screen, (number * (width + GAP), 0))
    picture.quantize(COLOURS, dither=Image.Dither.NONE).save(output, optimize=True)
    print(f"{output}: {picture.size[0]} × {picture.size[1]}, {output.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
