#!/usr/bin/env python3
"""Writes api/src/schema/tables.txt: what every message of the Kubernetes API is made of.

Run at development time only. Takes numbers, names and types from the published descriptors
(generated.proto, and the struct tags and markers of types.go) as Debian's packages
golang-k8s-api-dev, golang-k8s-apimachinery-dev and golang-k8s-apiextensions-apiserver-dev
install them; no sentence of theirs enters the output. Same input, same output.

    scripts/gen-api-tables.py [--src /usr/share/gocode/src/k8s.io] [--out api/src/schema/tables.txt]

Format of the output, one record per line, words separated by one space:
    P <package of the protobuf names> <prefix of the OpenAPI component names> <Go package name>
    E <named string type> <value>...            values of an enumeration of the package above
    M <message> [T] [W] [struct=atomic]         T: carries kind and apiVersion; W: in JSON the bare list of its one field
    <number> <json name or -> <type> <flag>...  a field of the message above, in the order JSON output has
A type is a scalar letter (s string, i int32, l int64, b bool, d double, y bytes) or a message
name (of the same package, or with its package), after `*` for optional presence, `[]` for
lists, `{}` for maps with string keys. Flags: o omitted when empty, z omitted when zero,
r required, ^ inlined in JSON, e=<named string type>, ps=<patch strategy>, pk=<patch merge key>,
lt=<list type>, lk=<list map keys>, mt=<map type>, st=<struct type>, def=<JSON default>.
"""

import argparse
import json
import pathlib
import re
import sys

# (folder below k8s.io, Go package name). Order is the order of the output.
PACKAGES = [
    "apimachinery/pkg/api/resource", "apimachinery/pkg/util/intstr", "apimachinery/pkg/runtime",
    "apimachinery/pkg/apis/meta/v1",
    "api/core/v1", "api/admission/v1", "api/admissionregistration/v1", "api/apidiscovery/v2", "api/apps/v1",
    "api/authentication/v1", "api/authorization/v1", "api/autoscaling/v1", "api/autoscaling/v2", "api/batch/v1",
    "api/certificates/v1", "api/coordination/v1", "api/discovery/v1", "api/events/v1", "api/flowcontrol/v1",
    "api/networking/v1", "api/node/v1", "api/policy/v1", "api/rbac/v1", "api/resource/v1", "api/scheduling/v1",
    "api/storage/v1", "apiextensions-apiserver/pkg/apis/apiextensions/v1",
]

# kube-aggregator has no Debian package; its one small group is written down here.
AGGREGATOR = """\
P k8s.io.kube_aggregator.pkg.apis.apiregistration.v1 io.k8s.kube-aggregator.pkg.apis.apiregistration.v1 v1
M APIService T
1 metadata meta.v1.ObjectMeta o
2 spec APIServiceSpec o
3 status APIServiceStatus o
M APIServiceCondition
1 type s r
2 status s r e=ConditionStatus
3 lastTransitionTime meta.v1.Time o
4 reason s o
5 message s o
M APIServiceList T
1 metadata meta.v1.ListMeta o
2 items []APIService r
M APIServiceSpec
1 service *ServiceReference o
2 group s o
3 version s o
4 insecureSkipTLSVerify b o
5 caBundle y o lt=atomic
7 groupPriorityMinimum i r
8 versionPriority i r
M APIServiceStatus
1 conditions []APIServiceCondition o ps=merge pk=type lt=map lk=type
M ServiceReference
1 namespace s o
2 name s o
3 port *i o
"""

SCALARS = {"string": "s", "int32": "i", "int64": "l", "bool": "b", "double": "d", "bytes": "y"}


def parse_proto(text):
    """{message: {field name: (number, cardinality, type)}} and the package."""
    package = re.search(r"^package ([\w.]+);", text, re.M).group(1)
    messages, current = {}, None
    for line in text.splitlines():
        line = line.strip()
        if line.startswith("//"):
            continue
        if m := re.match(r"message (\w+) \{", line):
            current = messages.setdefault(m.group(1), {})
        elif line == "}":
            current = None
        elif current is not None and (m := re.match(r"map<string, ([\w.]+)> (\w+) = (\d+)", line)):
            current[m.group(2)] = (int(m.group(3)), "{}", m.group(1))
        elif current is not None and (m := re.match(r"(optional|repeated|required) ([\w.]+) (\w+) = (\d+)", line)):
            current[m.group(3)] = (int(m.group(4)), "[]" if m.group(1) == "repeated" else "", m.group(2))
    return package, messages


class GoPackage:
    """Structs, named types and string constants of one Go package, by line patterns of gofmt'ed code."""

    def __init__(self, folder):
        self.structs, self.named, self.enums, self.consts, self.markers = {}, {}, set(), {}, {}
        for file in sorted(folder.glob("*.go")):
            if not file.name.endswith("_test.go") and not file.name.startswith("zz_generated"):
                self.read(file.read_text())

    def read(self, text):
        comments, struct = [], None
        for line in text.splitlines():
            bare = line.strip()
            if bare.startswith("//"):
                comments.append(bare[2:].strip())
                continue
            if struct is not None:
                if line == "}":
                    struct = None
                elif "`" in line:
                    struct.append((bare, comments))
            elif m := re.match(r"type (\w+) struct \{", line):
                struct = self.structs.setdefault(m.group(1), [])
                self.markers[m.group(1)] = comments
            elif m := re.match(r"type (\w+) ([\[\]\w.*]+)", line):
                self.named[m.group(1)] = m.group(2)
                if any(c == "+enum" for c in comments):
                    self.enums.add(m.group(1))
            elif m := re.match(r'\s*(?:const )?\w+\s+(\w+)\s*=\s*"([^"]*)"', line):
                self.consts.setdefault(m.group(1), []).append(m.group(2))
            if bare or struct is None:
                comments = [] if bare else comments if struct is not None else []
            if struct is not None and bare and not bare.startswith("//"):
                comments = []


def tag(tags, key):
    m = re.search(key + r':"([^"]*)"', tags)
    return m.group(1) if m else ""


def marker(comments, *names):
    for name in names:
        for c in comments:
            if c.startswith("+" + name + "="):
                return c.split("=", 1)[1].strip()
    return ""


def markers(comments, name):
    return [c.split("=", 1)[1].strip() for c in comments if c.startswith("+" + name + "=")]


def lower_first(name):
    return name[0].lower() + name[1:]


class Generator:
    def __init__(self, src):
        self.src, self.protos, self.go = src, {}, {}
        for folder in PACKAGES:
            package, messages = parse_proto((src / folder / "generated.proto").read_text())
            self.protos[folder] = (package, messages)
            self.go[folder] = GoPackage(src / folder)
        self.known = {f"{p}.{m}" for p, ms in self.protos.values() for m in ms}

    def type_ref(self, package, name):
        """A message name as the table writes it: bare in its own package, else from its last two package parts."""
        if name in SCALARS:
            return SCALARS[name]
        full = name.lstrip(".") if "." in name else f"{package}.{name}"
        if full not in self.known:
            sys.exit(f"unknown message {full}")
        if full.rsplit(".", 1)[0] == package:
            return full.rsplit(".", 1)[1]
        return ".".join(full.split(".")[-3:])

    def named_string(self, folder, go_type):
        bare = go_type.replace("*", "").replace("[]", "")
        if bare in self.go[folder].named and self.go[folder].named[bare] == "string":
            return bare
        if m := re.match(r"(\w+)\.(\w+)$", bare):
            for f in ("api/core/v1", "apimachinery/pkg/apis/meta/v1"):
                alias = {"api/core/v1": ("v1", "corev1"), "apimachinery/pkg/apis/meta/v1": ("metav1",)}[f]
                if m.group(1) in alias and self.go[f].named.get(m.group(2)) == "string":
                    return ("core.v1." if f.startswith("api/") else "meta.v1.") + m.group(2)
        return ""

    def enum_default(self, value):
        """A default marker as JSON; `ref(pkg.Const)` forms carry no value here and are left out."""
        try:
            return json.dumps(json.loads(value), separators=(",", ":"))
        except ValueError:
            return ""

    def field(self, folder, package, protos, line, comments):
        m = re.match(r"(?:(\w+)\s+)?(\*?[\[\]\w.*]+)\s+`(.*)`", line)
        if not m:
            sys.exit(f"cannot read field {line}")
        go_name, go_type, tags = m.groups()
        proto, name_opts = tag(tags, "protobuf"), tag(tags, "json").split(",")
        if go_name is None:
            go_name = go_type.split(".")[-1].lstrip("*")
        if not proto or proto == "-":
            return None
        number = int(re.search(r"(?:^|,)(\d+)", proto).group(1))
        named = [k for k, v in protos.items() if v[0] == number]
        if not named:
            sys.exit(f"{package}: no field {number} for {go_name}")
        _, card, proto_type = protos[named[0]]
        flags = []
        inline = "inline" in name_opts
        if inline:
            flags.append("^")
        if "omitempty" in name_opts:
            flags.append("o")
        if "omitzero" in name_opts:
            flags.append("z")
        optional = "+optional" in comments or "omitempty" in name_opts or "omitzero" in name_opts
        if not inline and ("+required" in comments or not optional):
            flags.append("r")
        if proto_type == "string" and (e := self.named_string(folder, go_type)):
            flags.append("e=" + e)
        for flag, value in (
            ("ps", tag(tags, "patchStrategy")), ("pk", tag(tags, "patchMergeKey")),
            ("lt", marker(comments, "listType")),
            ("lk", ",".join(markers(comments, "listMapKey"))),
            ("mt", marker(comments, "mapType")), ("st", marker(comments, "structType")),
            ("def", self.enum_default(marker(comments, "default"))),
        ):
            if value:
                flags.append(f"{flag}={value.replace(' ', '')}")
        pointer = "*" if go_type.startswith("*") else ""
        json_name = name_opts[0] or ("-" if inline else go_name)
        return " ".join([str(number), json_name, pointer + card + self.type_ref(package, proto_type), *flags])

    def message(self, folder, package, name, protos):
        go = self.go[folder]
        head, lines = ["M", name], []
        if name in go.named and go.named[name].startswith("["):
            head.append("W")
            ((number, card, t),) = protos.values()
            lines.append(f"{number} - {card}{self.type_ref(package, t)}")
        elif name in go.structs and name not in SPECIAL:
            for line, comments in go.structs[name]:
                if re.match(r"(metav1\.)?TypeMeta\s", line) or re.match(r"(v1\.)TypeMeta\s", line):
                    head.append("T")
                elif f := self.field(folder, package, protos, line, comments):
                    lines.append(f)
            if st := marker(go.markers.get(name, []), "structType", "mapType"):
                head.append("struct=" + st)
            if len(lines) != len(protos):
                sys.exit(f"{package}.{name}: {len(lines)} fields in Go, {len(protos)} in proto")
        else:
            for field, (number, card, t) in protos.items():
                lines.append(f"{number} {lower_first(field)} {card}{self.type_ref(package, t)}")
        return [" ".join(head), *lines]

    def run(self):
        out = []
        for folder in PACKAGES:
            package, messages = self.protos[folder]
            openapi = "io.k8s." + folder.replace("/", ".")
            out.append(f"P {package} {openapi} {folder.rsplit('/', 1)[1]}")
            go = self.go[folder]
            for e in sorted(go.enums):
                values = [v for v in go.consts.get(e, []) if v and " " not in v]
                if values:
                    out.append(" ".join(["E", e, *sorted(set(values))]))
            for name in sorted(messages):
                out += self.message(folder, package, name, messages[name])
        return "\n".join(out) + "\n" + AGGREGATOR


# Messages whose JSON is not that of their fields: the codec knows them by name.
SPECIAL = {
    "Time", "MicroTime", "Duration", "Timestamp", "Quantity", "QuantityValue", "IntOrString", "RawExtension", "Unknown",
    "FieldsV1", "JSON", "JSONSchemaPropsOrArray", "JSONSchemaPropsOrBool", "JSONSchemaPropsOrStringArray", "TypeMeta",
}


def main():
    args = argparse.ArgumentParser()
    args.add_argument("--src", type=pathlib.Path, default="/usr/share/gocode/src/k8s.io")
    args.add_argument("--out", type=pathlib.Path, default=pathlib.Path(__file__).parent.parent / "api/src/schema/tables.txt")
    args = args.parse_args()
    args.out.write_text(Generator(args.src).run())


main()
