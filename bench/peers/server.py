"""A server of the OpenAI protocol that is started for a measurement.  Needs Linux and Python alone."""
import base64
import json
import os
import socket
import subprocess
import sys
import tempfile
import time
import urllib.error
import urllib.request
from pathlib import Path

KINDS = {".jpg": "jpeg", ".jpeg": "jpeg", ".png": "png", ".webp": "webp"}
# Seconds that a model may take to load.
LOADING = 300


def pictures_in(folder):
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in KINDS)


class Server:
    """A command with a port behind it, in a `with` block; `start` is when it began, and inside the block it serves."""

    def __init__(self, command, poll=0.2):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.command = [*map(str, command), "--host", "127.0.0.1", "--port", str(port)]
        self.url, self.poll, self.log = f"http://127.0.0.1:{port}", poll, tempfile.TemporaryFile()

    def __enter__(self):
        self.start = time.monotonic()
        self.process = subprocess.Popen(self.command, stdout=self.log, stderr=self.log)
        while True:
            try:
                urllib.request.urlopen(f"{self.url}/health", timeout=5)
                return self
            except (urllib.error.URLError, ConnectionError, TimeoutError):
                if self.process.poll() is not None or time.monotonic() > self.start + LOADING:
                    self.log.seek(0)
                    text = self.log.read().decode(errors="replace")[-3000:]
                    self.__exit__()
                    sys.exit(f"{self.command[0]}: it does not serve\n{text}")
                time.sleep(self.poll)

    def __exit__(self, *_):
        self.process.terminate()
        self.process.wait()
        self.log.close()

    def seconds(self):
        """Seconds of the processors that it has had."""
        fields = Path(f"/proc/{self.process.pid}/stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")

    def peak_bytes(self):
        """The most memory that it has had, pages of files included."""
        lines = Path(f"/proc/{self.process.pid}/status").read_text().splitlines()
        return next(int(line.split()[1]) << 10 for line in lines if line.startswith("VmHWM:"))

    def usage(self, path, prompt, tokens, patience):
        """Asks about a picture, or none, for so many tokens, whatever the model says: the tokens that were counted."""
        content = [{"type": "text", "text": prompt}]
        if path:
            data = base64.b64encode(path.read_bytes()).decode()
            content.insert(0, {"type": "image_url", "image_url": {"url": f"data:image/{KINDS[path.suffix.lower()]};base64,{data}"}})
        body = {"messages": [{"role": "user", "content": content}], "temperature": 0, "max_tokens": tokens, "ignore_eos": True}
        url = f"{self.url}/v1/chat/completions"
        request = urllib.request.Request(url, json.dumps(body).encode(), {"content-type": "application/json"})
        try:
            with urllib.request.urlopen(request, timeout=patience) as reply:
                return json.load(reply)["usage"]
        except urllib.error.HTTPError as error:
            sys.exit(f"{url}: {error}: {error.read().decode(errors='replace')[:500]}")
