package admin

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/workloadapi/admin/view"
)

func TestAProposedEntryHasAnAnchorFirst(t *testing.T) {
	t.Parallel()
	for _, tt := range []struct {
		name string
		path string
		has  []string
		main bool
		want []string
		err  string
	}{
		{"a unit's main process", "/usr/bin/agent", []string{"unix:uid:7", "unix:user:agents", "systemd:id:agent.service", "unix:sha256:aa"}, true,
			[]string{"systemd:id:agent.service", "systemd:main_process:true", "unix:user:agents", "unix:sha256:aa"}, ""},
		{"a script of a unit", "/usr/bin/python3.11", []string{"unix:uid:7", "unix:user:agents", "systemd:id:agent.service", "script:path:/opt/a.py", "script:sha256:bb", "unix:sha256:aa"}, false,
			[]string{"systemd:id:agent.service", "unix:user:agents", "script:path:/opt/a.py", "script:sha256:bb"}, ""},
		{"an interpreter of a user's", "/usr/bin/python3", []string{"unix:uid:7", "unix:sha256:aa"}, false, []string{"unix:uid:7"}, ""},
		{"a program of root's", "/usr/sbin/agent", []string{"unix:uid:0", "unix:user:root", "unix:sha256:aa"}, false, []string{"unix:user:root", "unix:sha256:aa"}, ""},
		{"a unit of root's with an interpreter", "/bin/sh", []string{"unix:uid:0", "unix:user:root", "systemd:id:a.service", "unix:sha256:aa"}, false, []string{"systemd:id:a.service"}, ""},
		{"an interpreter of root's", "/bin/bash", []string{"unix:uid:0", "unix:user:root", "unix:sha256:aa"}, false, nil, "nothing distinguishes it from root's other processes"},
		{"a process in a user namespace", "/usr/bin/agent", []string{"unix:sha256:aa"}, false, nil, "start it as a unit"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			t.Parallel()
			x := view.Explanation{PID: 1, Path: tt.path}
			for _, s := range tt.has {
				x.Selectors = append(x.Selectors, view.Selector{Selector: s})
			}
			got, err := lasting(x, tt.main)
			if !slices.Equal(got, tt.want) || (err == nil) != (tt.err == "") || err != nil && !strings.Contains(err.Error(), tt.err) {
				t.Errorf("got %q, %v; want %q, %q", got, err, tt.want, tt.err)
			}
		})
	}
}

func TestHashPrintsTheOneSelectorThatFitsTheFile(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	for name, tt := range map[string]struct{ text, kind string }{
		"program": {"\x7fELF\x02\x01", "unix:sha256:"},
		"script":  {"#!/usr/bin/python3\n", "script:sha256:"},
		"empty":   {"", "script:sha256:"},
	} {
		path := filepath.Join(dir, name)
		if err := os.WriteFile(path, []byte(tt.text), 0o700); err != nil {
			t.Fatal(err)
		}
		views, err := hashOf(nil, path)
		if err != nil || len(views) != 1 || !strings.HasPrefix(views[0].Selector, tt.kind) {
			t.Errorf("%s: %+v, %v; want one %s", name, views, err, tt.kind)
		}
	}
}
