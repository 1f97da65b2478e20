"""Tables of what was measured, and how it compares with what Chatkeep aims at. Pure."""

from statistics import median

# test: title; what is shown of it
TABLES = {
    "a": ("First backup", ("cpu", "times", "wall", "peak", "bytes", "objects")),
    "b+1": ("After 1 message", ("cpu", "times", "bytes", "objects", "peak")),
    "b+10": ("After 10 messages", ("cpu", "times", "bytes", "objects", "peak")),
    "b+100": ("After 100 messages", ("cpu", "times", "bytes", "objects", "peak")),
    "b+1000": ("After 1000 messages", ("cpu", "times", "bytes", "objects", "peak")),
    "c": ("Many times 20 messages, a backup after each", ("cpu", "times", "bytes", "objects", "peak", "sound")),
    "d": ("Restore", ("cpu", "times", "check", "wall", "peak", "sound")),
    "f-rest": ("At rest, a minute", ("cpu", "wakeups", "bytes", "objects", "resident")),
    "f-second": ("One message a second, a minute", ("cpu", "wakeups", "bytes", "objects", "peak")),
    "g-first": ("Attachments, first", ("cpu", "times", "wall", "peak", "bytes", "objects")),
    "g-again": ("Attachments, unchanged", ("cpu", "times", "wall", "peak", "bytes", "objects")),
}
HEADINGS = {
    "cpu": "CPU s", "times": "CPU / ours", "wall": "wall s", "peak": "peak MiB", "bytes": "put", "objects": "objects",
    "wakeups": "wake-ups/s", "resident": "resident MiB", "sound": "sound", "check": "SQLite's check, CPU s",
}
ROUNDS = 50


def medians(repeats):
    """One row of several: the median of each number; sound only if all were."""
    keys = repeats[0].keys()
    values = {key: [one[key] for one in repeats] for key in keys}
    line = {key: all(all_) if key == "sound" else median(all_) for key, all_ in values.items()}
    return {**line, "n": len(repeats)}


def tables(results):
    """Markdown, one table for each test, the cheapest first."""
    parts = []
    for test, (title, columns) in TABLES.items():
        rows = results.get(test)
        if not rows:
            continue
        heads = " | ".join(HEADINGS[column] for column in columns)
        lines = [f"### {title}", "", f"| | {heads} |", "|---" * (len(columns) + 1) + "|"]
        for peer, line in sorted(rows.items(), key=lambda item: item[1]["cpu"]):
            name = f"**{peer}**" if peer == "chatkeep" else peer
            cells = " | ".join(cell(column, line, rows.get("chatkeep")) for column in columns)
            lines.append(f"| {name} | {cells} |")
        parts.append("\n".join(lines))
    return "\n\n".join(parts)


# what of which test stands for it in the summary
SUMMARY = (
    ("a: CPU", "a", "cpu"), ("a: bytes", "a", "bytes"), ("+10: CPU", "b+10", "cpu"), ("+10: bytes", "b+10", "bytes"),
    ("+1000: CPU", "b+1000", "cpu"), ("+1000: bytes", "b+1000", "bytes"), ("c: CPU", "c", "cpu"),
    ("c: bytes", "c", "bytes"), ("d: CPU", "d", "cpu"), ("f, busy: CPU", "f-second", "cpu"),
    ("f, busy: bytes", "f-second", "bytes"),
)


def summary(results):
    """Markdown: every peer in times ours, which says more about the programs than about the machine."""
    columns = [one for one in SUMMARY if results.get(one[1], {}).get("chatkeep")]
    peers = sorted({peer for _, test, _ in columns for peer in results[test]} - {"chatkeep"})
    heads = " | ".join(title for title, _, _ in columns)
    lines = ["### Theirs / ours", "", f"| | {heads} |", "|---" * (len(columns) + 1) + "|"]
    for peer in peers:
        cells = []
        for _, test, key in columns:
            theirs, ours = results[test].get(peer, {}).get(key), results[test]["chatkeep"][key]
            cells.append("–" if theirs is None or not ours else times(theirs / ours))
        lines.append(f"| {peer} | {' | '.join(cells)} |")
    return "\n".join(lines)


def times(ratio):
    """A ratio, with as many digits as it deserves."""
    return f"{ratio:,.0f}" if ratio >= 20 else f"{ratio:.1f}" if ratio >= 2 else f"{ratio:.2f}"


def cell(column, line, ours):
    """One figure, as people read it."""
    if column == "times":
        return f"{line['cpu'] / ours['cpu']:.2f}" if ours and ours["cpu"] else "–"
    value = line.get(column)
    if value is None:
        return "–"
    match column:
        case "cpu" | "wall" | "check":
            return f"{value:.3f}" if value < 1 else f"{value:.2f}"
        case "peak" | "resident":
            return f"{value / 2**20:.0f}"
        case "wakeups":
            return f"{value / line['seconds']:.1f}"
        case "bytes":
            return size(value)
        case "sound":
            return "yes" if value else "**no**"
    return f"{value:g}"


def size(value):
    """Bytes, in decimal units."""
    for unit, step in (("MB", 1e6), ("kB", 1e3)):
        if value >= step:
            return f"{value / step:.3g} {unit}" if value < 100 * step else f"{value / step:,.0f} {unit}"
    return f"{value:g} B"


def aims(results, capture, rounds):
    """Every aim: its name, the bound, the value (none if something it needs was not measured), whether it is met."""

    def of(peer, test, key):
        return results.get(test, {}).get(peer, {}).get(key)

    def ours(test, key, factor=1.0):
        value = of("chatkeep", test, key)
        return None if value is None else value * factor

    def ratio(test, key, peer):
        value, other = ours(test, key), of(peer, test, key)
        return value / other if value is not None and other else None

    first = {peer: line for peer, line in results.get("a", {}).items() if peer != "chatkeep"}
    smallest = min((line["bytes"] for line in first.values()), default=None)
    bytes_ratio = ours("a", "bytes") / smallest if smallest and ours("a", "bytes") else None
    cpu, wall = ours("a", "cpu"), ours("a", "wall")
    # a restore of ours is proved by SQLite's check, too: with and without it in both
    check, theirs = ours("d", "check"), of("bupstash", "d", "cpu")
    without_check = (ours("d", "cpu") - check) / theirs if check and theirs else None
    with_check = ours("d", "cpu") / (theirs + check) if check and theirs else None
    minute = 60 / seconds if (seconds := of("chatkeep", "f-rest", "seconds")) else 1.0
    woken = ours("f-rest", "wakeups")
    found = [
        ("first backup: CPU / rustic's", "<=", 0.65, ratio("a", "cpu", "rustic")),
        ("first backup: CPU / bupstash's", "<=", 0.9, ratio("a", "cpu", "bupstash")),
        ("first backup: bytes / the smallest peer's", "<=", 1.05, bytes_ratio),
        ("first backup: cores busy (CPU s / wall s)", ">=", 1.6, cpu / wall if cpu and wall else None),
        ("+10 messages: objects", "<=", 1, ours("b+10", "objects")),
        ("+10 messages: bytes / Litestream 0.5's", "<=", 0.1, ratio("b+10", "bytes", "litestream-0.5")),
        ("+1000 messages: bytes / Litestream 0.5's", "<=", 0.2, ratio("b+1000", "bytes", "litestream-0.5")),
        ("small capture: CPU / reading and compressing its pages", "<=", 2.0, capture.get("small_capture_ratio")),
        ("50 x 20 messages: MB", "<=", 3.0, ours("c", "bytes", 1e-6 * ROUNDS / rounds)),
        ("50 x 20 messages: CPU s", "<=", 0.5, ours("c", "cpu", ROUNDS / rounds)),
        ("restore, SQLite's check in ours only: CPU / bupstash's", "<=", 0.8, ratio("d", "cpu", "bupstash")),
        ("restore, without SQLite's check: CPU / bupstash's", "<=", 0.8, without_check),
        ("restore, SQLite's check in both: CPU / bupstash's", "<=", 0.8, with_check),
        ("at rest: CPU s a minute", "<=", 0.01, ours("f-rest", "cpu", minute)),
        ("at rest: wake-ups a second", "<=", 1.0, woken / seconds if woken is not None else None),
        ("a message a second: objects a minute", "<=", 12, ours("f-second", "objects", minute)),
        ("a message a second: MB a minute", "<=", 0.2, ours("f-second", "bytes", 1e-6 * minute)),
        ("writer: commit rate / without us", ">=", 0.97, capture.get("commit_rate_ratio")),
        ("attachments, first: CPU / bupstash's", "<=", 1.0, ratio("g-first", "cpu", "bupstash")),
        ("attachments, unchanged: CPU / bupstash's", "<=", 1.0, ratio("g-again", "cpu", "bupstash")),
    ]
    return [
        {"name": name, "aim": f"{sign} {bound:g}", "value": None if value is None else round(value, 4),
         "met": None if value is None else (value <= bound if sign == "<=" else value >= bound)}
        for name, sign, bound, value in found
    ]


def aims_table(all_aims):
    """Markdown of the aims."""
    lines = ["### Aims", "", "| | aim | value | met |", "|---|---|---|---|"]
    for aim in all_aims:
        value = "not measured" if aim["value"] is None else f"{aim['value']:.3g}"
        met = {True: "yes", False: "no", None: "–"}[aim["met"]]
        lines.append(f"| {aim['name']} | {aim['aim']} | {value} | {met} |")
    return "\n".join(lines)
