"""chat.py --serve under load: many clients at once against one, each answer compared.

    OMP_NUM_THREADS=1 python tests/bench_serve.py --clients 32 --seconds 60

Every example picture is asked the same questions in random order, over the loopback, by one client
and then by many. Before that chat.py's own conversation answers each question alone; an answer
that differs is counted. Printed: answers a second, how long they took, the server's memory.
"""
import argparse
import base64
import http.client
import json
import os
import random
import re
import subprocess
import sys
import threading
import time
from pathlib import Path

import torch

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from chat import Conversation  # noqa: E402
from data import Tokenizer  # noqa: E402
from projector import SkyEyeGPT  # noqa: E402
from support.common import environment  # noqa: E402
from support.inference.generation import pack_if_possible  # noqa: E402

THINGS = ("house with a blue roof", "largest ship", "leftmost car", "tennis court", "storage tank",
          "airplane", "road", "river", "white car", "tree")
QUESTIONS = (
    "[caption] briefly describe the image", "[grounding] describe this image in detail",
    "[vqa] what is the theme of this picture ?", "[vqa] is it a rural or an urban area ?",
    *(f"[refer] where is the {thing} ?" for thing in THINGS),
    *(f"[detection] {thing}s" for thing in THINGS),
    *(f"[vqa] is there a {thing} ?" for thing in THINGS),
    *(f"[vqa] how many {thing}s are there ?" for thing in THINGS),
)
Asked = tuple[str, str]                 # picture, question


def answers_alone(folder: str, asked: list[Asked]) -> tuple[dict[Asked, str], float]:
    """What chat.py says, and how many answers a second it gives."""
    model = pack_if_possible(SkyEyeGPT.from_pretrained(folder))
    tokenizer = Tokenizer(Path(folder) / "tokenizer.model", model.config.llama.vocab_size)
    sampling = {"max_new_tokens": 300, "stop": tokenizer.eos, "temperature": None, "top_p": 0.9,
                "top_k": 50, "repetition_penalty": None,
                "generator": torch.Generator().manual_seed(42)}
    by_picture = {path: Conversation(model, tokenizer, [path], sampling, alone=True)
                  for path in dict.fromkeys(path for path, _ in asked)}
    began = time.monotonic()
    found = {(path, question): "".join(by_picture[path].ask(question)) for path, question in asked}
    return found, len(asked) / (time.monotonic() - began)


class Server:
    """chat.py --serve in a process of its own."""

    def __init__(self, model: str, flags: list[str]):
        self.process = subprocess.Popen(
            [sys.executable, "chat.py", "--serve", "--port", "0", "--no-open", "--model", model,
             *flags], cwd=ROOT, stderr=subprocess.PIPE, text=True)
        lines = iter(self.process.stderr.readline, "")
        self.port = int(re.search(r":(\d+)/", next(lines))[1])
        next(line for line in lines if line == "ready\n")
        threading.Thread(target=list, args=(lines,), daemon=True).start()     # the log

    def memory(self) -> float:
        """Resident, in MB."""
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return int(re.search(r"VmRSS:\s+(\d+)", status)[1]) / 1024


def load(server: Server, asked: list[Asked], expected: dict[Asked, str], clients: int,
         seconds: float, seed: int) -> dict:
    """Ask for so long -> counts, times and memory."""
    urls = {path: "data:image/png;base64," + base64.b64encode(Path(path).read_bytes()).decode()
            for path, _ in asked}
    times, wrong, memory = [], [], [server.memory()]
    end = time.monotonic() + seconds

    def client(number: int) -> None:
        rng = random.Random(seed + number)
        connection = http.client.HTTPConnection("127.0.0.1", server.port, timeout=120)
        while time.monotonic() < end:
            path, question = rng.choice(asked)
            parts = [{"type": "image_url", "image_url": {"url": urls[path]}},
                     {"type": "text", "text": question}]
            body = json.dumps({"messages": [{"role": "user", "content": parts}]})
            began = time.monotonic()
            connection.request("POST", "/v1/chat/completions", body,
                               {"Content-Type": "application/json"})
            reply = connection.getresponse()
            content = json.loads(reply.read())
            times.append(time.monotonic() - began)
            if reply.status != 200 or content["choices"][0]["message"]["content"] != expected[
                    path, question]:
                wrong.append((path, question, content))

    threads = [threading.Thread(target=client, args=(number,)) for number in range(clients)]
    began = time.monotonic()
    for thread in threads:
        thread.start()
    while any(thread.is_alive() for thread in threads):
        time.sleep(0.5)
        memory.append(server.memory())
    took = time.monotonic() - began
    times.sort()
    return {"clients": clients, "answers": len(times), "per_second": len(times) / took,
            "median": times[len(times) // 2], "p95": times[int(0.95 * len(times))],
            "longest": times[-1], "wrong": wrong, "memory": memory}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="weights/nano", help="model folder")
    parser.add_argument("--clients", type=int, default=32, help="at once (default: %(default)s)")
    parser.add_argument("--seconds", type=float, default=60, help="of the load, and half of it of "
                        "one client (default: %(default)s)")
    parser.add_argument("--batch_size", type=int, default=16, help="of the server")
    parser.add_argument("--seed", type=int, default=42, help="random seed (default: %(default)s)")
    args = parser.parse_args()
    paths = [str(path) for path in sorted((ROOT / "examples").glob("*.png"))
             if path.with_suffix(".json").is_file()]
    asked = [(path, question) for path in paths for question in QUESTIONS]
    expected, alone = answers_alone(args.model, asked)
    sys.stdout.reconfigure(line_buffering=True)
    print(", ".join(f"{name} {value}" for name, value in environment("cpu").items()),
          f"{os.cpu_count()} cores", f"load {os.getloadavg()[0]:.1f}", sep=", ")
    print(f"chat.py, one conversation: {alone:.1f} answers/s; {len(asked)} questions")
    server = Server(args.model, ["--batch_size", str(args.batch_size)])
    try:
        one = load(server, asked, expected, 1, args.seconds / 2, args.seed)
        many = load(server, asked, expected, args.clients, args.seconds, args.seed + 1)
    finally:
        server.process.terminate()
        server.process.wait(60)
    for found in (one, many):
        third = len(found["memory"]) // 3
        print(f"{found['clients']} clients: {found['answers']} answers, "
              f"{found['per_second']:.1f}/s; median {1000 * found['median']:.0f} ms, p95 "
              f"{1000 * found['p95']:.0f} ms, longest {1000 * found['longest']:.0f} ms; "
              f"{len(found['wrong'])} differ; memory {found['memory'][third]:.0f} MB after a "
              f"third, {found['memory'][-1]:.0f} MB at the end")
    print(f"many against one: {many['per_second'] / one['per_second']:.2f} x")
    for path, question, content in (one["wrong"] + many["wrong"])[:5]:
        print(Path(path).name, question, expected[path, question], json.dumps(content)[:400])


if __name__ == "__main__":
    main()
