"""Pages that a command leaves behind: one HTML file that holds everything, to be mailed or archived."""

import base64
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from anatogen.core.files import write_text
from anatogen.report.numbers import capitalised


def write_page(path: Path, template: str, **content: Any) -> None:
    """Renders one of the package's templates to a file, atomically; whatever it shows is escaped.

    Args:
        path: The HTML file.
        template: Name of the template, such as "demo.html".
        **content: What the template shows; a name that is missing is an error.
    """
    environment = Environment(
        loader=PackageLoader("anatogen.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"data_url": data_url, "capitalised": capitalised}
    write_text(path, environment.get_template(template).render(**content))


def data_url(picture: Path) -> str:
    """A PNG file as the address that holds it, for pages that must do without the network."""
    return "data:image/png;base64," + base64.b64encode(picture.read_bytes()).decode("ascii")
