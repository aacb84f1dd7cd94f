"""`/metrics`: the node's numbers and the gateway's own in the Prometheus text format."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from typing import final

from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, Metric
from prometheus_client.registry import Collector

from peer.api import NodeApi


@final
class GatewayCounts:
    """What the gateway counts about itself."""

    def __init__(self) -> None:
        self.replies: Counter[int] = Counter()
        """By HTTP status."""
        self.asks_running = 0


@final
class NodeCollector(Collector):
    """Reads the numbers when they are asked for; keeps none."""

    def __init__(self, node: NodeApi, counts: GatewayCounts) -> None:
        self._node = node
        self._counts = counts

    def collect(self) -> Iterator[Metric]:
        yield from node_families(self._node.metrics())
        replies = CounterMetricFamily(
            "upkeep_gateway_replies", "Replies of the gateway by HTTP status.", labels=["status"]
        )
        for status, count in sorted(self._counts.replies.items()):
            replies.add_metric([str(status)], count)
        yield replies
        yield GaugeMetricFamily(
            "upkeep_gateway_asks_running", "Questions being answered now.", value=self._counts.asks_running
        )


def node_families(numbers: Mapping[str, int | float]) -> Iterator[Metric]:
    """A family for each number: names that end in `_total` are counters, the others gauges."""
    for name, value in sorted(numbers.items()):
        words = name.removeprefix("upkeep_").removesuffix("_total").replace("_", " ")
        about = words[:1].upper() + words[1:] + "."
        if name.endswith("_total"):
            yield CounterMetricFamily(name.removesuffix("_total"), about, value=value)
        else:
            yield GaugeMetricFamily(name, about, value=value)


def render(node: NodeApi, counts: GatewayCounts) -> bytes:
    """The exposition of everything, in text format 0.0.4."""
    registry = CollectorRegistry(auto_describe=False)
    registry.register(NodeCollector(node, counts))
    return generate_latest(registry)
