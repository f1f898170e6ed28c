"""Greets whom the route or the body names, and counts down."""

import json
import os
from urllib.parse import unquote

import wit_world
from componentize_py_async_support import spawn
from componentize_py_types import Ok
from wit_world import exports
from wit_world.imports import monotonic_clock
from wit_world.imports.types import Fields, Request, Response

TICK = 50_000_000


class Handler(exports.Handler):
    async def handle(self, request: Request) -> Response:
        headers = request.get_headers()

        def parameter(name: str) -> str:
            # As it stands in the path: percent-encoded.
            return unquote(str(b"".join(headers.get(f"ebb-param-{name}")), "ascii"))

        match request.get_path_with_query().split("?")[0].split("/")[1]:
            case "hello":
                return answer("text/plain; charset=utf-8", greet(parameter("name")) + "\n")
            case "greetings":
                return greetings(await body(request))
            case "countdown":
                start = parameter("from")
                return countdown(int(start)) if start.isdecimal() else problem(f"`{start}` is not a number")
        return problem("there is no such path", 404)


def greet(name: str) -> str:
    return f"{os.environ.get('GREETING', 'Hi')}, {name}!"


def greetings(document: bytes) -> Response:
    try:
        names = json.loads(document)["names"]
        return answer("application/json", json.dumps({"greetings": [greet(name) for name in names]}))
    except (KeyError, TypeError, ValueError):
        return problem('the body must be JSON: {"names": ["…"]}')


def countdown(start: int) -> Response:
    """Server-sent events, each sent when it is its time."""
    sender, receiver = wit_world.byte_stream()

    async def count() -> None:
        with sender:
            for number in range(start, -1, -1):
                # What is left unwritten says that nobody reads any more.
                if await sender.write_all(f"data: {number}\n\n".encode()) == 0:
                    return
                await monotonic_clock.wait_for(TICK)

    spawn(count())
    return respond(200, "text/event-stream", receiver)


def problem(detail: str, status: int = 400) -> Response:
    return answer("application/problem+json", json.dumps({"status": status, "detail": detail}), status)


def answer(content_type: str, text: str, status: int = 200) -> Response:
    sender, receiver = wit_world.byte_stream()

    async def write() -> None:
        with sender:
            await sender.write_all(text.encode())

    spawn(write())
    return respond(status, content_type, receiver)


def respond(status: int, content_type: str, contents) -> Response:
    headers = Fields.from_list([("content-type", content_type.encode())])
    no_trailers = wit_world.result_option_types_fields_types_error_code_future(lambda: Ok(None))[1]
    response, _ = Response.new(headers, contents, no_trailers)
    response.set_status_code(status)
    return response


async def body(request: Request) -> bytes:
    all_is_well = wit_world.result_unit_types_error_code_future(lambda: Ok(None))[1]
    stream, _ = Request.consume_body(request, all_is_well)
    parts = []
    with stream:
        while not stream.writer_dropped:
            parts.append(await stream.read(64 << 10))
    return b"".join(parts)
