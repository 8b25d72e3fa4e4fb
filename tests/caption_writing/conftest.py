"""A real HTTP server on this machine that answers as OpenAI's chat API does, or badly at will."""

import collections
import http.server
import json
import threading

import pytest

KEY = "sk-planted-0123456789"


class ChatServer:
    """Counts what it is asked; `act(body, number)` says what to do with a prompt's number-th try.

    An action is a dict: `status`, `reason`, `headers`, `raw` (the body's bytes), `text`,
    `finish_reason`, `usage`, `model`, `delay` and `drip` (seconds, before the answer and between
    its bytes), `cut` (bytes that are promised and not sent), `endless` (bytes that are sent until
    the client hangs up), `drop` (hang up).
    """

    def __init__(self):
        self.act = lambda body, number: {}
        self.bodies = []
        self.keys = set()
        self.answered = collections.Counter()  # by prompt and seed
        self.tries = collections.Counter()
        self.under_way = self.most_under_way = 0
        self.sent = 0  # bytes of endless answers
        self.lock = threading.Lock()
        self.stopping = threading.Event()
        server = self

        class Handler(http.server.BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_POST(self):
                server.handle(self)

            def log_message(self, *arguments):
                del arguments

        self.http = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.http.daemon_threads = True
        # A client that was killed is no error of the server's, whose traceback would be the test's.
        self.http.handle_error = lambda request, address: None
        self.http.block_on_close = False
        self.url = f"http://127.0.0.1:{self.http.server_port}/v1"
        threading.Thread(target=self.http.serve_forever, args=(0.01,), daemon=True).start()

    def close(self):
        self.stopping.set()
        self.http.shutdown()
        self.http.server_close()

    def handle(self, handler):
        body = json.loads(handler.rfile.read(int(handler.headers["Content-Length"])))
        assert handler.path == "/v1/chat/completions"
        prompt = body["messages"][0]["content"]
        what = (prompt, body.get("seed"))
        with self.lock:
            self.bodies.append(body)
            self.keys.add(handler.headers["Authorization"])
            self.tries[what] += 1
            number = self.tries[what]
            self.under_way += 1
            self.most_under_way = max(self.most_under_way, self.under_way)
        action = self.act(body, number)
        try:
            self.answer(handler, body, action, what)
        except OSError:
            pass  # nobody waits any more
        finally:
            with self.lock:
                self.under_way -= 1

    def answer(self, handler, body, action, what):
        self.stopping.wait(action.get("delay", 0))
        if action.get("drop"):
            handler.close_connection = True
            handler.connection.close()
            return
        status = action.get("status", 200)
        raw = action.get("raw")
        if raw is None:
            text = action.get("text", f"a picture for {what[0]}")
            choice = {"index": 0, "message": {"role": "assistant", "content": text}}
            answer = {
                "model": action.get("model", f"{body['model']}-0613"),
                "choices": [choice | {"finish_reason": action.get("finish_reason", "stop")}],
                "usage": action.get("usage", {"prompt_tokens": 10, "completion_tokens": 4}),
            }
            raw = json.dumps(answer).encode()
        handler.send_response(status, action.get("reason"))
        headers = {"Content-Type": "application/json", **action.get("headers", {})}
        for name, value in headers.items():
            handler.send_header(name, value)
        if "endless" in action:
            handler.close_connection = True
            handler.end_headers()
            while not self.stopping.is_set():
                handler.wfile.write(action["endless"])
                self.sent += len(action["endless"])
            return
        handler.send_header("Content-Length", str(len(raw) + action.get("cut", 0)))
        handler.end_headers()
        if "drip" in action:
            for byte in raw:
                handler.wfile.write(bytes([byte]))
                handler.wfile.flush()
                if self.stopping.wait(action["drip"]):
                    break
        else:
            handler.wfile.write(raw)
        handler.wfile.flush()
        if action.get("cut"):
            handler.close_connection = True
        elif status == 200:
            with self.lock:
                self.answered[what] += 1


@pytest.fixture
def server(monkeypatch):
    """A running ChatServer, whose address and key are in the environment."""
    running = ChatServer()
    monkeypatch.setenv("OPENAI_BASE_URL", running.url)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    yield running
    running.close()
