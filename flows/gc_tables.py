"""What `dass gc` shows before it asks: what would go, how much and why, and what stays."""

from typing import TYPE_CHECKING

from tasks.disk.freeing import Plan
from tasks.registry.timeline import plain
from tasks.workspace.sizes import in_words
from tasks.workspace.tables import Fitted, table

if TYPE_CHECKING:
    from rich.console import Group


def plan_tables(plan: Plan) -> Fitted:
    """A plan for a terminal."""

    def build(width: int) -> "Group":
        from rich.console import Group
        from rich.markup import escape

        title = f"Nothing needs {in_words(plan.bytes)}" if plan.candidates else "Everything is needed: nothing to free"
        going = table(width, "store", "what", "how many", "size", "why", title=title, right=("how many", "size"))
        for row in plan.rows:
            cells = (row.store, escape(plain(row.what)), f"{row.count:,}", in_words(row.bytes), escape(plain(row.why)))
            going.add_row(*cells)
        staying = table(width, "store", "what", "why", title="Stays")
        needed = f"what {plan.needs.versions} registered versions need, in all stores"
        staying.add_row("all", needed, "dass verify --replay")
        for each in plan.left:
            staying.add_row(each.store, escape(plain(each.what)), escape(plain(each.why)))
        return Group(going, "", staying) if plan.candidates else Group(title, "", staying)

    return Fitted(build)
