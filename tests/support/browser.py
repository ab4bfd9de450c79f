"""Pages in a real browser: headless Chromium (Debian packages chromium and chromium-driver)."""

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from selenium import webdriver
from selenium.webdriver.chrome.options import Options
from selenium.webdriver.chrome.service import Service

SIZES = {"laptop": (1280, 900), "phone": (390, 844)}
_SWITCHES = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--allow-file-access-from-files",
)  # fmt: skip


@contextmanager
def opened(page: Path, size: str, profile: Path) -> Iterator[webdriver.Chrome]:
    """Open a page from disk in a browser window of a given size."""
    programs = shutil.which("chromium"), shutil.which("chromedriver")
    if None in programs:
        pytest.skip("no Chromium here: apt-get install chromium chromium-driver")
    options = Options()
    options.binary_location = programs[0]
    width, height = SIZES[size]
    for switch in (*_SWITCHES, f"--user-data-dir={profile}"):
        options.add_argument(switch)
    options.set_capability("goog:loggingPrefs", {"browser": "ALL"})
    driver = webdriver.Chrome(options, Service(programs[1]))
    try:
        metrics = {"width": width, "height": height, "deviceScaleFactor": 1, "mobile": size == "phone"}
        driver.execute_cdp_cmd("Emulation.setDeviceMetricsOverride", metrics)
        driver.get(page.as_uri())
        yield driver
    finally:
        driver.quit()


def assert_sound(driver: webdriver.Chrome) -> None:
    """Check that there are no console errors, every picture loads, and nothing is wider than the window."""
    driver.execute_script('for (const i of document.images) i.loading = "eager"')
    driver.execute_async_script(
        "const shown = [...document.images].filter(i => i.getAttribute('src'));"
        "Promise.all(shown.map(i => i.decode().catch(() => 0))).then(arguments[0])"
    )
    broken = driver.execute_script(
        "return [...document.images].filter(i => i.getAttribute('src') && !i.naturalWidth).map(i => i.src)"
    )
    assert broken == []
    count = driver.execute_script("return [...document.images].filter(i => i.naturalWidth).length")
    assert count > 0
    wide, window = driver.execute_script("return [document.documentElement.scrollWidth, window.innerWidth]")
    assert wide <= window, f"the page is {wide} pixels wide in a window of {window}"
    assert [entry for entry in driver.get_log("browser") if entry["level"] in ("SEVERE", "WARNING")] == []


def assert_slider_works(driver: webdriver.Chrome) -> None:
    """Check the overlay of base and tuned picture: a click opens it, the slider moves the border, and it closes."""
    from selenium.webdriver.common.by import By

    button = driver.find_element(By.CSS_SELECTOR, ".pair button")
    driver.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
    button.click()
    viewer = driver.find_element(By.ID, "viewer")
    assert viewer.is_displayed()
    base, tuned = viewer.find_elements(By.TAG_NAME, "img")
    assert base.get_attribute("src").endswith(button.get_attribute("data-base"))
    assert tuned.get_attribute("src") == button.find_element(By.TAG_NAME, "img").get_attribute("src")
    assert base.size == tuned.size
    clips = []
    for value in (0, 30, 100):
        driver.execute_script(
            "const s = arguments[0]; s.value = arguments[1]; s.dispatchEvent(new Event('input', {bubbles: true}))",
            viewer.find_element(By.TAG_NAME, "input"),
            value,
        )
        clips.append(tuned.value_of_css_property("clip-path"))
    hidden = [clip.replace("calc", "").strip("inset()").split() for clip in clips]  # top, right, bottom, left
    assert [part[1] for part in hidden] == ["100%", "70%", "0%"], "shares of the tuned picture, which is on the right"
    ends = [span.text for span in viewer.find_elements(By.CSS_SELECTOR, "input + p span")]
    assert ends == ["base", "tuned"]
    viewer.find_element(By.TAG_NAME, "button").click()
    assert not viewer.is_displayed()
