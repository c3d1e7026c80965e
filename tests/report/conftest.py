"""One real run of two rounds for all tests of the report, on images whose names attack it; and a real browser."""

import io
import json
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.chrome.service import Service

from flows.conductor import Conductor, finished
from flows.self_training import self_training
from ssl_tasks.config import RunConfig
from ssl_tasks.report.page import write_report
from ssl_tasks.runs import Run
from tests.report.hostile import CLASSES, sample_id

SIZE, IMAGES = 20, 240
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run",
    "--disable-background-networking", "--disable-component-update", "--disable-sync", "--window-size=1280,1000",
)  # fmt: skip
LEARNER = {
    "model": {"name": "mlp", "width": 32},
    "train": {
        "steps": 60, "batch_size": 12, "unlabeled_ratio": 2, "evaluate_every": 20, "learning_rate": 0.05,
        "median_of": 2,
    },
}  # fmt: skip


def write_table(path: Path) -> None:
    """Images of a table with hostile ids and labels: each class has its own bright corner, in noise."""
    generator = np.random.default_rng(0)
    rows: dict[str, list[Any]] = {"image": [], "label": [], "id": []}
    for number in range(IMAGES):
        label = number % len(CLASSES)
        pixels = generator.integers(0, 200, (SIZE, SIZE, 3))
        pixels[:8, label * 6 : label * 6 + 6] += 50
        stream = io.BytesIO()
        Image.fromarray(pixels.astype(np.uint8)).save(stream, "PNG")
        rows["image"].append(stream.getvalue())
        rows["label"].append(CLASSES[label])
        rows["id"].append(sample_id(number))
    pq.write_table(pa.table(rows), path)


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A teacher and two students, with every hidden truth known."""
    folder = tmp_path_factory.mktemp("report")
    write_table(folder / "images.parquet")
    one_round = {"predict": {"views": 2}, "select": {"threshold": 0.5}, "student": LEARNER}
    config = RunConfig.model_validate(
        {
            "name": "hostile",
            "data": {
                "source": {"name": "table", "path": folder / "images.parquet", "id": "id"},
                "split": {"labels_per_class": 4, "validation": 30, "test": 30},
            },
            "teacher": LEARNER,
            "rounds": [one_round, one_round],
            "runtime": {"threads": 1},
        }
    )
    run = Run.create(folder / "workspace", config)
    conductor = Conductor(run, config, isolate=False)
    summary = self_training(config, conductor)
    conductor.close()
    run.write_summary(summary.as_json())
    finished(run, None, summary.stopped)
    return run


@pytest.fixture(scope="session")
def page(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run's report."""
    return write_report(run, tmp_path_factory.mktemp("page") / "report.html")


@dataclass
class Browser:
    """A headless Chromium, what it said and what it downloaded."""

    driver: webdriver.Chrome
    downloads: Path

    def open(self, page: Path, width: int = 1280, dark: bool = False, height: int = 1000) -> None:
        """Loads a file at a width, in light or dark; what was said before is forgotten."""
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.driver.execute_cdp_cmd("Emulation.setEmulatedMedia", {"features": [scheme]})
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": width < 600}
        self.driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        self.open_address(page.as_uri())

    def open_address(self, address: str) -> None:
        """Loads a page; what was said before is forgotten."""
        self.driver.get("about:blank")  # whatever the page before has to say, it says now
        self.driver.get_log("browser")
        self.driver.get_log("performance")
        self.driver.get(address)

    def run(self, script: str, *arguments: Any) -> Any:
        """The value of a script in the page."""
        return self.driver.execute_script(script, *arguments)

    def complaints(self) -> list[str]:
        """Everything in the console since the page was opened."""
        return [entry["message"] for entry in self.driver.get_log("browser")]

    def requests(self) -> list[str]:
        """Addresses that were asked for since the page was opened; data in the page itself is none."""
        events = (json.loads(entry["message"])["message"] for entry in self.driver.get_log("performance"))
        sent = (one["params"]["request"]["url"] for one in events if one["method"] == "Network.requestWillBeSent")
        return [url for url in sent if not url.startswith(("data:", "blob:"))]


@pytest.fixture(scope="session")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests; without a Chromium they fail, so that nobody believes they passed."""
    chromium, chromedriver = shutil.which("chromium"), shutil.which("chromedriver")
    if chromium is None or chromedriver is None:
        pytest.fail("chromium and chromedriver are not both there; on Debian: apt-get install chromium chromium-driver")
    downloads = tmp_path_factory.mktemp("downloads")
    options = webdriver.ChromeOptions()
    options.binary_location = chromium
    for flag in (*FLAGS, f"--user-data-dir={tmp_path_factory.mktemp('profile')}"):
        options.add_argument(flag)
    options.add_experimental_option("prefs", {"download.default_directory": str(downloads)})
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(chromedriver))
    yield Browser(driver, downloads)
    driver.quit()
