"""Processes of a run that notice within seconds when one of them is killed.

A process that waits for another one, for a gradient or at the end of an evaluation, would wait for
hours, and one that computes on its own would find out when it has ended. So each process holds a
connection to rank 0, which the kernel closes however a process ends.
"""
import os
import re
import secrets
import socket
import sys
import threading
import time
from pathlib import Path

import torch
import torch.distributed as dist

from support.common import explain_out_of_memory, is_out_of_memory

GRACE = 3.0                     # seconds in which processes that all end for one reason say so
CONNECT_SECONDS = 60.0
ENDED = "of the run has ended; was it killed, or was memory short? This one ends too; "


def watch_processes(advice: str) -> None:
    """Start it, on all processes at once, after they are connected. Where this process does not
    leave the group (dist.destroy_process_group) within GRACE seconds after another one has ended,
    it prints one line, with the advice, and ends with exit code 2."""
    try:
        peers = connect()
    except OSError as error:                    # as behind a firewall: a run works without it
        print(f"the other processes cannot be watched ({error}); if one is killed, end the others "
              "by hand", file=sys.stderr)
        return
    for peer, connection in peers.items():
        connection.settimeout(None)
        connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        threading.Thread(target=end_with, args=(connection, peer, advice), daemon=True).start()


def connect() -> dict[int, socket.socket]:
    """-> by rank: on rank 0 the connections of all others, on these the one to rank 0. OSError."""
    rank, world_size = dist.get_rank(), dist.get_world_size()
    if rank == 0:
        listening = socket.create_server(("", 0), backlog=world_size)
        address: list = [(listening.getsockname()[1], secrets.token_hex(8))]
        dist.broadcast_object_list(address)
        return accept(listening, address[0][1], world_size - 1)
    address = [None]
    dist.broadcast_object_list(address)
    port, token = address[0]
    connection = socket.create_connection((os.environ["MASTER_ADDR"], port), CONNECT_SECONDS)
    connection.sendall(f"{token} {rank:8}".encode())
    return {0: connection}


def accept(listening: socket.socket, token: str, count: int) -> dict[int, socket.socket]:
    """-> the connections of the other processes, by rank; strangers are turned away."""
    peers: dict[int, socket.socket] = {}
    with listening:
        listening.settimeout(CONNECT_SECONDS)
        while len(peers) < count:
            connection, _ = listening.accept()
            connection.settimeout(CONNECT_SECONDS)
            given, _, rank = connection.recv(len(token) + 9, socket.MSG_WAITALL).decode(
                "ascii", "replace").partition(" ")
            if given == token:
                peers[int(rank)] = connection
            else:
                connection.close()
    return peers


def end_with(connection: socket.socket, rank: int, advice: str) -> None:
    """Wait until that process has ended, then end this one, unless it has nothing to wait for."""
    try:
        connection.recv(1)                      # nobody sends anything: it is closed
    except OSError:                             # the machine is gone
        pass
    time.sleep(GRACE)
    if dist.is_initialized():
        print(f"{Path(sys.argv[0]).name}: process {rank} {ENDED}{advice}", file=sys.stderr,
              flush=True)
        os._exit(2)


# What gloo and NCCL say of a process that has gone.
GONE = re.compile("closed by (remote )?peer|reset by peer|broken pipe|connection refused|"
                  "remote process exited|socket closed|pair closure|recvvalue failed|"
                  "failed to recv", re.IGNORECASE)


def explain_failure(error: BaseException, device: str, advice: str) -> str:
    """The line for what no program can help: a process that is gone, memory that is used up, no
    compiler. Any other error is raised again."""
    if dist.is_initialized() and GONE.search(str(error)):
        return f"another process {ENDED}{advice}"
    if is_out_of_memory(error):
        return explain_out_of_memory(error, device)
    if isinstance(error, torch._dynamo.exc.TorchDynamoException):
        return f"--compile: {str(error).splitlines()[0]}"
    raise error
