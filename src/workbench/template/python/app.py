"""{about}."""

from penstock import Setting, plugin


class {Type}:
    def __init__(self, settings):
        """An instance of its settings. An exception refuses them: what ran before goes on."""
        self.drop = set(settings.texts("drop"))
        self.column = settings.get("column", "event_type")

    def interest(self, table):
        """Asked for each version of a table. The fewer columns are wanted, the less is copied."""
        return table.only(self.column) if self.column in table.index else table.none()

    def process(self, change, out):
        """Called for each change. An exception sends this change, and no other, to the dead letters."""
        if change.get(self.column) in self.drop:
            out.drop()
        else:
            out.forward()


Transform, Description = plugin(
    {Type},
    name="{name}",
    doc="{about}.",
    settings=[
        Setting("drop", kind="texts", doc='the words, e.g. ["order.cancelled"]'),
        Setting("column", default="event_type", doc="the text column; tables without it pass by"),
    ],
)
