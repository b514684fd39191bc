"""From a ServiceError to a gRPC status with google.rpc details: ErrorInfo always, RetryInfo, BadRequest and the
attempts where known.
"""

from typing import NoReturn

import grpc
from google.protobuf.any_pb2 import Any as AnyMessage
from google.protobuf.duration_pb2 import Duration
from google.protobuf.message import Message
from google.rpc.error_details_pb2 import BadRequest, ErrorInfo, RetryInfo
from google.rpc.status_pb2 import Status
from routecast.v1 import routing_pb2

from service.errors import STATUS, InvalidRequestError, NotFoundError, ServiceError, UpstreamRejectedError
from service.rpc.convert import attempts_to_proto

DOMAIN = "routecast"
_MAX_BODY_IN_DETAILS = 2048


def _details(error: ServiceError) -> list[Message]:
    info = ErrorInfo(reason=error.reason, domain=DOMAIN)
    details: list[Message] = [info]
    if error.retry_after_s is not None:
        delay = Duration()
        delay.FromMicroseconds(round(error.retry_after_s * 1e6))
        details.append(RetryInfo(retry_delay=delay))
    match error:
        case InvalidRequestError():
            violations = [BadRequest.FieldViolation(field=v.field, description=v.description) for v in error.violations]
            details.append(BadRequest(field_violations=violations))
        case NotFoundError() if error.known:
            info.metadata["known"] = ", ".join(error.known)
        case UpstreamRejectedError():
            info.metadata["http_status"] = str(error.status)
            info.metadata["body"] = (error.body or b"")[:_MAX_BODY_IN_DETAILS].decode(errors="replace")
        case _:
            pass
    if error.attempts:
        details.append(routing_pb2.RoutingReport(attempts=attempts_to_proto(error.attempts)))
    return details


async def abort(context: "grpc.aio.ServicerContext[object, object]", error: ServiceError) -> NoReturn:
    """End the call with the error's status and details."""
    code = STATUS[type(error)].grpc
    status = Status(code=code.value[0], message=error.message)
    for detail in _details(error):
        packed = AnyMessage()
        packed.Pack(detail)
        status.details.append(packed)
    trailers = (("grpc-status-details-bin", status.SerializeToString()),)
    await context.abort(code, error.message, trailing_metadata=trailers)
    raise AssertionError("unreachable: abort raises")
