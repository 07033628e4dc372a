"""From group names to members: what a profile's `ends`, `pairs` and counts stand for, and whether they make sense."""

from __future__ import annotations

import difflib
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from pydantic import BaseModel

from emulation.pairing import WITHIN, paired
from emulation.refusal import refuse

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping, Sequence

    from emulation.collectives import CollectiveOption
    from emulation.figures import Figure
    from emulation.profile import DeviceGroup, Host, NicGroup, Profile, SwitchGroup
    from emulation.refusal import Path
    from emulation.wiring import Link

MAX_LINKS = 2_000_000
CPU = "cpu"


class Wire(NamedTuple):
    """One link between two members, before it is given its two directions."""

    left: str
    right: str
    link: Link
    lanes: int


def host_groups(host: Host) -> dict[str, int]:
    """Group name -> count, of everything in one host that a link can end at."""
    parts: tuple[Sequence[DeviceGroup | NicGroup | SwitchGroup], ...] = (host.devices, host.nics, host.switches)
    return {CPU: 1} | {group.name: group.count for groups in parts for group in groups}


def members(name: str, groups: Mapping[str, int]) -> list[str]:
    """Members of a group (`gpu` -> `gpu0`, `gpu1`), or the one member named (`gpu1`); empty if there is none."""
    if name == CPU and CPU in groups:
        return [CPU]
    if name in groups:
        return [f"{name}{index}" for index in range(groups[name])]
    split = re.fullmatch(r"([a-z-]+?)(\d+)", name)
    if split and split[1] in groups and int(split[2]) < groups[split[1]]:
        return [name]
    return []


def check_host(host: Host) -> None:
    """Refuse names used twice and links that end nowhere.

    Raises:
        PydanticCustomError: with the path of the first mistake.
    """
    seen = {CPU}
    parts: dict[str, Sequence[DeviceGroup | NicGroup | SwitchGroup]]
    parts = {"devices": host.devices, "nics": host.nics, "switches": host.switches}
    for kind, groups in parts.items():
        for index, group in enumerate(groups):
            if group.name in seen:
                refuse((kind, index, "name"), f"{group.name!r} names two groups of host {host.name!r}")
            seen.add(group.name)
    _check_unique(("links",), [link.name for link in host.links])
    for index, link in enumerate(host.links):
        list(_joined(link, host_groups(host), ("links", index)))


def check_sources(profile: Profile) -> None:
    """Refuse a figure whose source is not listed.

    Raises:
        PydanticCustomError: with the path of the first mistake.
    """
    for path, figure in figures(profile):
        if figure.source not in profile.sources:
            refuse((*path, "source"), f"{figure.source!r} is not in `sources`", figure.source, profile.sources)


def check_models(profile: Profile) -> None:
    """Refuse devices of unknown models, a `cpu` that is none, and host groups of one name.

    Raises:
        PydanticCustomError: with the path of the first mistake.
    """
    _check_unique(("hosts",), [host.name for host in profile.hosts])
    for h, host in enumerate(profile.hosts):
        if host.cpu not in profile.models or profile.models[host.cpu].kind != "cpu":
            known = [name for name, model in profile.models.items() if model.kind == "cpu"]
            refuse(("hosts", h, "cpu"), f"{host.cpu!r} is no cpu model of this profile", host.cpu, known)
        for d, device in enumerate(host.devices):
            if device.model not in profile.models:
                path = ("hosts", h, "devices", d, "model")
                refuse(path, f"{device.model!r} is no model of this profile", device.model, profile.models)


def check_one_sided(profile: Profile) -> None:
    """Refuse one-sided writes between hosts that have no adapter for them; within one host they need none.

    Raises:
        PydanticCustomError: with the path of the first mistake.
    """
    several = sum(host.count for host in profile.hosts) > 1
    for h, host in enumerate(profile.hosts):
        if several and host.software.one_sided and not any(nic.rdma for nic in host.nics):
            path = ("hosts", h, "software", "one_sided")
            refuse(
                path, f"host {host.name!r} has no adapter with `rdma: true` to write into another host's memory with"
            )


def check_fabric(profile: Profile) -> None:
    """Refuse fabric links that end nowhere, and a cluster that falls apart.

    Raises:
        PydanticCustomError: with the path of the first mistake.
    """
    fabric = profile.fabric
    _check_unique(("fabric", "links"), [link.name for link in fabric.links])
    _check_unique(("fabric", "switches"), [switch.name for switch in fabric.switches])
    if fabric.topology and (fabric.links or fabric.switches):
        refuse(("fabric", "topology"), "a fabric is either a `topology` or `switches` and `links`")
    if wire_count(profile) > MAX_LINKS:
        refuse(("hosts",), f"this profile has {wire_count(profile):,} links; at most {MAX_LINKS:,} are possible")
    _check_joined(profile)


def check_tables(profile: Profile) -> None:
    """Refuse two measured tables of the same thing, or two sets of residuals of one family.

    Raises:
        PydanticCustomError: with the path of the second.
    """
    _check_unique(("residuals",), [residuals.family for residuals in profile.residuals])
    seen = set()
    for index, table in enumerate(profile.collective_tables):
        key = (table.op, table.ranks, table.hosts, table.link)
        if key in seen:
            refuse(
                ("collective_tables", index),
                f"there are two tables of {table.op} over {table.ranks} ranks on {table.hosts} host(s), {table.link}",
            )
        seen.add(key)


def wire_count(profile: Profile) -> int:
    """How many links the profile stands for, counted without making them."""
    total = 0
    for host in profile.hosts:
        groups = host_groups(host)
        total += host.count * sum(_count(link, groups) for link in host.links)
    if profile.fabric.topology:
        from emulation.topologies import ports, shape_of

        shape = shape_of(profile, profile.fabric.topology)
        return total + shape.trunks + sum(map(len, ports(profile, profile.fabric.topology.ends)))
    groups = _fabric_groups(profile)
    return total + sum(_count(link, groups) for link in profile.fabric.links)


def host_wires(host: Host) -> Iterator[Wire]:
    """Every link inside one host of a group, by the names of its members."""
    groups = host_groups(host)
    for link in host.links:
        for left, right, factor in _joined(link, groups, ()):
            yield Wire(left, right, link, link.lanes * factor)


def fabric_wires(profile: Profile) -> Iterator[Wire]:
    """Every link that `fabric.links` stands for, in the order of the document."""
    for index, link in enumerate(profile.fabric.links):
        for left, right, factor in _fabric_pairs(profile, link, ("fabric", "links", index)):
            yield Wire(left, right, link, link.lanes * factor)


def devices(profile: Profile) -> list[str]:
    """Names of everything that computes beside the hosts' own processors."""
    return [
        f"{host.name}{index}/{group.name}{number}"
        for host in profile.hosts
        for index in range(host.count)
        for group in host.devices
        for number in range(group.count)
    ]


def processors(profile: Profile) -> list[str]:
    """Names of everything that computes: the hosts' processors, then the devices."""
    return [*_hosts_cpus(profile), *devices(profile)]


def host_of(profile: Profile, name: str) -> Host:
    """The host group that `host1` or `host1/gpu0` belongs to.

    Raises:
        ValueError: no such host.
    """
    head = name.split("/", 1)[0]
    for host in profile.hosts:
        if re.fullmatch(re.escape(host.name) + r"\d+", head) and int(head[len(host.name) :]) < host.count:
            return host
    near = difflib.get_close_matches(head, profile.host_names(), n=1)
    raise ValueError(
        f"profile {profile.name!r} has no host {head!r}" + (f"; did you mean {near[0]!r}?" if near else "")
    )


def figures(profile: Profile) -> Iterator[tuple[Path, Figure | CollectiveOption]]:
    """Every figure and collective option with its path in the document."""
    from emulation.collectives import CollectiveOption
    from emulation.figures import Figure

    def walk(value: Any, path: Path) -> Iterator[tuple[Path, Figure | CollectiveOption]]:
        if isinstance(value, Figure | CollectiveOption):
            yield path, value
        elif isinstance(value, BaseModel):
            for name in type(value).model_fields:
                yield from walk(getattr(value, name), (*path, name))
        elif isinstance(value, dict):
            for key, item in value.items():
                yield from walk(item, (*path, key))
        elif isinstance(value, list):
            for index, item in enumerate(value):
                yield from walk(item, (*path, index))

    return walk(profile, ())


def _check_joined(profile: Profile) -> None:
    """Hosts of a group are equal, so what is joined inside one is found once; then the fabric joins these parts."""
    home: dict[str, str] = {}
    parts = {host.name: _parts(host) for host in profile.hosts}

    def part(name: str) -> str:
        head, _, member = name.partition("/")
        group = parts.get(head.rstrip("0123456789"))
        return f"{head}/{group[member]}" if group and head != "fabric" else name

    for left, right in _fabric_ends(profile):
        home[_root(home, part(left))] = _root(home, part(right))
    first = next(iter(_hosts_cpus(profile)))
    root = _root(home, part(first))
    for name in (*_hosts_cpus(profile), *devices(profile)):
        if _root(home, part(name)) != root:
            where: Path = ("hosts",) if "/" in name and not name.endswith("/cpu") else ("fabric",)
            refuse(where, f"no chain of links joins {first!r} and {name!r}")


def _fabric_ends(profile: Profile) -> Iterator[tuple[str, str]]:
    if profile.fabric.topology:
        from emulation.topologies import ports

        for names in ports(profile, profile.fabric.topology.ends):
            yield from ((name, "fabric") for name in names)
    for wire in fabric_wires(profile):
        yield wire.left, wire.right


def _parts(host: Host) -> dict[str, str]:
    """Member of a host -> a member that stands for all it is joined to inside the host."""
    home: dict[str, str] = {}
    for wire in host_wires(host):
        home[_root(home, wire.left)] = _root(home, wire.right)
    groups = host_groups(host)
    return {member: _root(home, member) for name in groups for member in members(name, groups)}


def _root(home: dict[str, str], name: str) -> str:
    while (above := home.setdefault(name, name)) != name:
        home[name] = home.setdefault(above, above)
        name = above
    return name


def _hosts_cpus(profile: Profile) -> list[str]:
    return [f"{name}/{CPU}" for name in profile.host_names()]


def _check_unique(path: Path, names: Sequence[str]) -> None:
    for index, name in enumerate(names):
        if name in names[:index]:
            refuse((*path, index, "name"), f"{name!r} is used twice")


def _count(link: Link, groups: Mapping[str, int]) -> int:
    if link.pairs or len(link.ends) != 2:
        return len(link.pairs)
    left, right = (groups.get(end, 1) for end in link.ends)
    if link.pairing == "mesh":
        return left * (left - 1) // 2
    if link.pairing in {"block", "cube-mesh"}:
        return max(left, right) * (2 if link.pairing == "cube-mesh" else 1)
    return left if link.pairing in {"index", "ring"} else left * right


def _joined(link: Link, groups: Mapping[str, int], path: Path) -> Iterator[tuple[str, str, int]]:
    """Pairs of members of one host that a link joins, each with what its lanes are multiplied by."""
    if bool(link.pairs) == bool(link.ends):
        refuse(path, f"link {link.name!r} needs either `ends` or `pairs`")
    for index, pair in enumerate(link.pairs):
        if len(pair) != 2 or pair[0] == pair[1]:
            refuse((*path, "pairs", index), "a pair names two different members, such as [gpu0, gpu1]")
        for end in pair:
            if members(end, groups) != [end]:
                refuse((*path, "pairs", index), f"no member {end!r} in this host", end, _every_member(groups))
        yield pair[0], pair[1], 1
    if link.ends:
        sides = [members(end, groups) for end in _two_ends(link, path)]
        for index, side in enumerate(sides):
            if not side:
                refuse((*path, "ends", index), f"no group {link.ends[index]!r} in this host", link.ends[index], groups)
        yield from paired(link.pairing, sides[0], sides[1], path)


def _two_ends(link: Link, path: Path) -> list[str]:
    if len(link.ends) != 2:
        refuse((*path, "ends"), f"link {link.name!r} needs two ends")
    if (link.ends[0] == link.ends[1]) != (link.pairing in WITHIN):
        known = f"`{link.pairing}` is for " + ("a group with itself" if link.pairing in WITHIN else "two groups")
        within = ", ".join(f"`{name}`" for name in WITHIN)
        refuse((*path, "pairing"), f"{known}; {within} join members of one group, the others two groups")
    return link.ends


def _fabric_groups(profile: Profile) -> dict[str, int]:
    groups: dict[str, int] = {}
    for host in profile.hosts:
        for name, count in host_groups(host).items():
            groups[name] = groups.get(name, 0) + count * host.count
    groups.update((switch.name, switch.count) for switch in profile.fabric.switches)
    return groups


def _fabric_members(profile: Profile, name: str) -> list[str]:
    for switch in profile.fabric.switches:
        if switch.name == name:
            return [f"fabric/{name}{index}" for index in range(switch.count)]
    return [
        f"{host.name}{index}/{member}"
        for host in profile.hosts
        for index in range(host.count)
        for member in members(name, host_groups(host))
    ]


def _fabric_pairs(profile: Profile, link: Link, path: Path) -> Iterator[tuple[str, str, int]]:
    if link.pairs or not link.ends:
        refuse(path, f"fabric link {link.name!r} needs `ends`")
    sides = [_fabric_members(profile, end) for end in _two_ends(link, path)]
    for index, side in enumerate(sides):
        if not side:
            end = link.ends[index]
            refuse((*path, "ends", index), f"no group {end!r} in any host or the fabric", end, _fabric_groups(profile))
    if link.pairing == "index" and len(sides[0]) % len(sides[1]) == 0:
        # Rails: adapter k of every host is joined to switch k.
        yield from ((name, sides[1][index % len(sides[1])], 1) for index, name in enumerate(sides[0]))
        return
    for left, right, factor in paired(link.pairing, sides[0], sides[1], path):
        if left.split("/")[0] != right.split("/")[0] or left.startswith("fabric/"):
            yield left, right, factor


def _every_member(groups: Mapping[str, int]) -> list[str]:
    return [member for name in groups for member in members(name, groups)]
