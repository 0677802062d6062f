package process

import (
	"context"
	"strconv"
	"strings"

	"github.com/vouchd/vouchd/attest"
)

// selectors states the facts that hold for the process. A fact that cannot be
// stated as a valid selector is left out.
func (a *Attester) selectors(ctx context.Context, at *Attested, o observation) attest.Selectors {
	s := make(attest.Selectors, 0, 16+2*len(o.status.groups))
	add := func(kind, value string) {
		if value != "" {
			s = append(s, attest.Selector{Type: kind, Value: value})
		}
	}
	id := func(n uint32) string { return strconv.FormatUint(uint64(n), 10) }

	add("unix", "uid:"+id(at.UID))
	if name := a.names.user(ctx, at.UID); name != "" {
		add("unix", "user:"+name)
	}
	add("unix", "gid:"+id(at.GID))
	if name := a.names.group(ctx, at.GID); name != "" {
		add("unix", "group:"+name)
	}
	for _, gid := range o.status.groups {
		add("unix", "supplementary_gid:"+id(gid))
		if name := a.names.group(ctx, gid); name != "" {
			add("unix", "supplementary_group:"+name)
		}
	}
	if isAt(o.program, at.Path) {
		add("unix", "path:"+at.Path)
	}
	if at.SHA256 != "" {
		add("unix", "sha256:"+at.SHA256)
	}
	if plainPath(at.Cgroup) && !strings.HasSuffix(at.Cgroup, " (deleted)") {
		add("cgroup", "path:"+at.Cgroup)
	}
	if unit, slice, ok := a.host.unit(at.Cgroup); ok {
		at.Unit = unit
		add("systemd", "id:"+unit)
		add("systemd", "slice:"+slice)
	}
	return s
}
