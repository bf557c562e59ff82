"""What people write by hand: a FastAPI service in another environment, JSON with base64, an httpx client."""

from __future__ import annotations

import base64
import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from _driver import serve

SERVICE = """
import sys, uvicorn
from fastapi import FastAPI, Request
app = FastAPI()
@app.post("/echo")
async def echo(request: Request):
    return await request.json()
uvicorn.run(app, uds=sys.argv[1], log_level="error")
"""


def packed(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: packed(item) for key, item in value.items()}
    if value is None:
        return None
    return {
        "dtype": value.dtype.str,
        "shape": value.shape,
        "data": base64.b64encode(value.tobytes()).decode(),
    }


def unpacked(value: Any) -> Any:
    if value is None:
        return None
    if set(value) == {"dtype", "shape", "data"}:
        data = base64.b64decode(value["data"])
        return np.frombuffer(data, value["dtype"]).reshape(value["shape"])
    return {key: unpacked(item) for key, item in value.items()}


class Http:
    def __init__(self) -> None:
        path = Path(f"/tmp/http-{time.time_ns()}.sock")
        self.service = subprocess.Popen([sys.argv[1], "-c", SERVICE, str(path)])
        while not path.exists():
            time.sleep(0.05)
        self.client = httpx.Client(transport=httpx.HTTPTransport(uds=str(path)), timeout=120)

    def echo(self, value: Any) -> Any:
        return unpacked(self.client.post("http://service/echo", content=json.dumps(packed(value))).json())

    def close(self) -> None:
        self.service.kill()


serve(Http)
