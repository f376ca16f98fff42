"""The RPCs of MonitoringService."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from itertools import repeat

from tallystick.monitoring.v1 import monitoring_service_pb2 as pb
from tallystick_core.access import Role
from tallystick_core.errors import ApiError, not_found_error
from tallystick_core.validation import parse_text, require_item_count
from tallystick_server.monitoring import convert_history, convert_recording, convert_traces
from tallystick_server.monitoring.metric_history import read_histories
from tallystick_server.rpc.batch import apply_each
from tallystick_server.rpc.call import Access, Call
from tallystick_server.rpc.errors import to_status
from tallystick_server.rpc.pagination import NEWEST_FIRST, Listing, list_page
from tallystick_storage import clock
from tallystick_storage.database import Database
from tallystick_storage.monitoring import history as history_store
from tallystick_storage.monitoring import recording as recording_store
from tallystick_storage.monitoring import traces as trace_store

_READ = frozenset({Role.OPERATOR, Role.AUDITOR})
ACCESS: Access = {
    "BatchRecordSamples": frozenset({Role.SERVICE}),
    "ListMetricSeries": _READ,
    "GetMetricHistory": _READ,
    "BatchGetMetricHistories": _READ,
    "BatchRecordSpans": frozenset({Role.SERVICE}),
    "GetTrace": _READ,
    "ListTraces": _READ,
}
_MAX_METRIC = 100
_MAX_QUERIES = 20
_SERIES = Listing(
    "ListMetricSeries",
    history_store.list_series,
    (int,),
    lambda row: (row.series_id,),
    convert_history.series,
)
_TRACES = Listing(
    "ListTraces",
    trace_store.list_traces,
    NEWEST_FIRST,
    lambda row: (row.start_time, row.trace_id),
    convert_traces.trace,
)


class MonitoringHandlers:
    """Handlers only decode, await and encode. `max_series`: the limit of recorded series."""

    def __init__(
        self, database: Database, max_series: int, trace_limits: trace_store.TraceLimits
    ) -> None:
        self._database = database
        self._max_series = max_series
        self._trace_limits = trace_limits

    async def BatchRecordSamples(
        self, request: pb.BatchRecordSamplesRequest, _call: Call
    ) -> pb.BatchRecordSamplesResponse:
        recording = convert_recording.parse_recording(request)
        record = partial(recording_store.record, **recording._asdict(), max_series=self._max_series)
        result = await self._database.transact(record, idempotent=True)
        return pb.BatchRecordSamplesResponse(
            recorded_count=result.recorded, dropped_count=result.requested - result.recorded
        )

    async def ListMetricSeries(
        self, request: pb.ListMetricSeriesRequest, _call: Call
    ) -> pb.ListMetricSeriesResponse:
        metric = parse_text(request.metric, "metric", _MAX_METRIC)
        criteria = history_store.SeriesCriteria(
            convert_history.find_metric(metric).name if metric else None
        )
        series, token = await list_page(self._database, _SERIES, request, criteria)
        return pb.ListMetricSeriesResponse(series=series, next_page_token=token)

    async def GetMetricHistory(
        self, request: pb.GetMetricHistoryRequest, _call: Call
    ) -> pb.GetMetricHistoryResponse:
        (result,) = await self._read_histories([request])
        if isinstance(result, ApiError):
            raise result
        return result

    async def BatchGetMetricHistories(
        self, request: pb.BatchGetMetricHistoriesRequest, _call: Call
    ) -> pb.BatchGetMetricHistoriesResponse:
        require_item_count(request.queries, "queries", _MAX_QUERIES)
        results = await self._read_histories(request.queries)
        return pb.BatchGetMetricHistoriesResponse(
            results=[_to_result(result, number) for number, result in enumerate(results)]
        )

    async def _read_histories(
        self, requests: Sequence[pb.GetMetricHistoryRequest]
    ) -> list[pb.GetMetricHistoryResponse | ApiError]:
        """The result of each request, in order."""
        now = await self._database.read(clock.now)
        queries = apply_each(convert_history.parse_query, requests, repeat(now))
        results = await self._database.read(partial(read_histories, queries=queries))
        return apply_each(convert_history.history_response, queries, results)

    async def BatchRecordSpans(
        self, request: pb.BatchRecordSpansRequest, _call: Call
    ) -> pb.BatchRecordSpansResponse:
        if not request.spans:
            return pb.BatchRecordSpansResponse()
        spans, errors = convert_traces.parse_spans(request)
        record = partial(trace_store.record_spans, spans=spans, limits=self._trace_limits)
        result = await self._database.transact(record, idempotent=True)
        return pb.BatchRecordSpansResponse(
            recorded_count=result.recorded,
            dropped_count=result.dropped,
            invalid_count=len(errors),
            first_error=next(iter(errors), ""),
        )

    async def GetTrace(self, request: pb.GetTraceRequest, _call: Call) -> pb.GetTraceResponse:
        trace_id = convert_traces.parse_trace_id(request.trace_id)
        found = await self._database.read(partial(trace_store.find_trace, trace_id=trace_id))
        if found is None:
            raise not_found_error("trace", trace_id)
        trace, spans = found
        return pb.GetTraceResponse(
            trace=convert_traces.trace(trace), spans=convert_traces.spans(spans)
        )

    async def ListTraces(self, request: pb.ListTracesRequest, _call: Call) -> pb.ListTracesResponse:
        criteria = convert_traces.parse_criteria(request)
        traces, token = await list_page(self._database, _TRACES, request, criteria)
        return pb.ListTracesResponse(traces=traces, next_page_token=token)


def _to_result(
    result: pb.GetMetricHistoryResponse | ApiError, number: int
) -> pb.MetricHistoryResult:
    if isinstance(result, ApiError):
        return pb.MetricHistoryResult(
            error=to_status(result.with_field_prefix(f"queries[{number}]"))
        )
    return pb.MetricHistoryResult(history=result)
