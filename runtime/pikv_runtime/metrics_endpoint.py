"""The Prometheus text endpoint, over `prometheus_client` (optional: `pip install 'pikv-optimizer[metrics]'`)."""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from pikv_runtime.metrics import Metric, read

if TYPE_CHECKING:
    from pikv_runtime.engine import Engine


class MetricsEndpoint:
    """Serves the metrics that were published last, from a thread of its own.

    The engine publishes between two iterations; a scrape never touches it.
    """

    def __init__(self, port: int, host: str = "127.0.0.1", every_rank: bool = True) -> None:
        """Listen at `host:port` (0: any free port, see `port`).

        `every_rank`: also tell what is the same on every rank; on one rank of several only, or sums would count twice.

        Raises:
            ValueError: prometheus_client is not installed, or nobody can listen there.
        """
        try:
            from prometheus_client import CollectorRegistry, start_http_server
        except ImportError:
            raise ValueError(
                "a metrics endpoint needs prometheus_client: pip install 'pikv-optimizer[metrics]'"
            ) from None
        self._published: list[Metric] = []
        self._all = every_rank
        registry = CollectorRegistry()
        registry.register(self)
        try:
            self._server, self._thread = start_http_server(port, host, registry)
        except (OSError, OverflowError) as error:
            raise ValueError(f"metrics endpoint {host}:{port}: {error}") from None
        self.host, self.port = host, int(self._server.server_port)

    def publish(self, engine: Engine) -> None:
        """Read `engine`'s metrics: what scrapes see from now on."""
        self._published = read(engine)

    def close(self) -> None:
        """Stop listening."""
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def describe(self) -> list[Any]:
        """Nothing before the first publication: see prometheus_client's `Collector`."""
        return []

    def collect(self) -> Iterator[Any]:
        """The published metrics as prometheus_client's families."""
        from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, HistogramMetricFamily

        kinds: dict[str, Any] = {"counter": CounterMetricFamily, "gauge": GaugeMetricFamily}
        for metric in self._published:
            if not (metric.everywhere or self._all):
                continue
            if metric.histogram is not None:
                h = metric.histogram
                yield HistogramMetricFamily(metric.name, metric.doc, buckets=h.cumulative(), sum_value=h.total)
            elif metric.values:
                names = [name for name, _ in next(iter(metric.values))]
                family = kinds[metric.kind](metric.name, metric.doc, labels=names)
                for labels, value in metric.values.items():
                    family.add_metric([value for _, value in labels], value)
                yield family
