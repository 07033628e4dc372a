"""Run in a process of its own: completion times of flows by SimGrid's max-min model, from JSON to JSON."""

import json
import sys

import simgrid

CONFIG = (
    "network/model:CM02",
    "network/weight-S:0",
    "network/TCP-gamma:0",
    "network/latency-factor:1",
    "network/bandwidth-factor:1",
    "network/crosstraffic:0",
    "maxmin/precision:1e-12",
)


def main() -> None:
    case = json.load(sys.stdin)
    engine = simgrid.Engine(["oracle", "--log=root.thresh:error", *(f"--cfg={option}" for option in CONFIG)])
    zone = simgrid.NetZone.create_full_zone("zone")
    links = [zone.create_link(f"l{n}", [rate]).set_latency(0).seal() for n, rate in enumerate(case["capacities"])]
    done = {}

    def send(flow, target, size):
        simgrid.Mailbox.by_name(f"m{flow}").put(flow, size)
        done[flow] = simgrid.Engine.clock

    def receive(flow):
        simgrid.Mailbox.by_name(f"m{flow}").get()

    ends = []
    for flow, route in enumerate(case["routes"]):
        a, b = (zone.create_host(f"{side}{flow}", 1e9).seal() for side in "ab")
        zone.add_route(a.netpoint, b.netpoint, None, None, [simgrid.LinkInRoute(links[n]) for n in route], True)
        ends.append((a, b))
    zone.seal()
    for flow, (a, b) in enumerate(ends):
        simgrid.Actor.create(f"send{flow}", a, send, flow, b, case["sizes"][flow])
        simgrid.Actor.create(f"recv{flow}", b, receive, flow)
    engine.run()
    json.dump([done[flow] for flow in range(len(ends))], sys.stdout)


main()
