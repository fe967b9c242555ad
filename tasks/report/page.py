"""The page itself: one HTML file that fetches nothing. Every text in it may be anybody's, and is escaped."""

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources

from tasks.report import anatomy, cost, origin
from tasks.report.blocks import Section
from tasks.report.facts import Facts
from tasks.report.file import GENERATOR
from tasks.report.library import library


def sections_of(facts: Facts) -> list[Section]:
    """The parts of a page, in order; what there is nothing to say about is left out."""
    wanted = [
        cost.headline(facts),
        cost.verdicts(facts),
        cost.perplexity(facts),
        cost.tasks(facts),
        cost.divergence(facts),
        cost.generations(facts),
        anatomy.choice(facts),
        anatomy.layers(facts),
        anatomy.neurons(facts),
        origin.change(facts),
        origin.provenance(facts),
        origin.history(facts),
        origin.verify(facts),
    ]
    return [section for section in wanted if section is not None]


@dataclass(frozen=True)
class Head:
    """What a page is called.

    Attributes:
        name, which: "smollm2-dass", "version 3".
        aliases: of a version.
    """

    name: str
    which: str
    aliases: Sequence[str] = ()


def render(facts: Facts) -> str:
    """A version's page as HTML. Equal facts give equal pages."""
    head = Head(facts.model, f"version {facts.number}", facts.aliases)
    return render_sections(head, sections_of(facts), f"{GENERATOR} {facts.origin['dass']}")


def render_sections(head: Head, sections: Sequence[Section], generator: str) -> str:
    """A page as HTML.

    Its policy names its scripts by their digests: a browser runs these and no other, whatever a text holds.
    """
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("tasks.report", "template"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.policies["json.dumps_kwargs"] = {"sort_keys": True, "ensure_ascii": False, "separators": (",", ":")}
    scripts = [library(), _file("page.js")]
    return environment.get_template("page.html.j2").render(
        generator=generator,
        head=head,
        sections=sections,
        charts={chart.name: chart.spec for section in sections for chart in section.charts},
        style=_file("page.css"),
        scripts=scripts,
        digests=[_sha256(script) for script in scripts],
    )


def _file(name: str) -> str:
    return (resources.files("tasks.report") / "template" / name).read_text(encoding="utf-8").strip()


def _sha256(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
