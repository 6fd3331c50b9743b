"""Unit tests, without a host: `python3 -m unittest`. The golden cases in `cases` run the built plugin."""

import unittest

from app import Transform
from penstock.testing import Harness, Refused


class Tests(unittest.TestCase):
    def test_named_words_are_let_go_of(self):
        harness = Harness(Transform, {"drop": ["order.cancelled"]})
        outbox = harness.table("shop.outbox", "id uuid primary, event_type text")
        self.assertEqual(harness.run(outbox, {"event_type": "order.cancelled"}), [{"dropped": 1}])
        self.assertEqual(harness.run(outbox, {"event_type": "order.created"}), [{"forwarded": 1}])

    def test_an_unknown_setting_is_refused(self):
        with self.assertRaisesRegex(Refused, "unknown setting `dorp`"):
            Harness(Transform, {"dorp": "x"})
