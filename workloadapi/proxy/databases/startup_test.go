package databases

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"strings"
	"testing"

	"github.com/vouchd/vouchd/credential/database"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

type readWriter struct {
	io.Reader
	out bytes.Buffer
}

func (rw *readWriter) Write(p []byte) (int, error) { return rw.out.Write(p) }

func definition(t testing.TB, d database.Definition) *database.Definition {
	t.Helper()
	if d.Protocol == "" {
		d.Protocol = database.Postgres
	}
	if err := d.Compile(); err != nil {
		t.Fatal(err)
	}
	return &d
}

// FuzzReadStartup: whatever an agent sends first, what is answered is at most twice "no",
// and parameters for the database are from the closed list.
func FuzzReadStartup(f *testing.F) {
	start := func(body string) []byte {
		b := binary.BigEndian.AppendUint32(nil, uint32(len(body)+8))
		return append(binary.BigEndian.AppendUint32(b, version3), body...)
	}
	f.Add(start("user\x00me\x00\x00"))
	f.Add(start("user\x00me\x00database\x00d\x00application_name\x00x\x00_pq_.x\x00\x00\x00"))
	f.Add(append([]byte{0, 0, 0, 8, 4, 210, 22, 47}, start("user\x00\x00\x00")...))
	f.Add([]byte{0, 0, 0, 16, 4, 210, 22, 46, 0, 0, 0, 1, 0, 0, 0, 2})
	d := definition(f, database.Definition{Upstream: "postgres://localhost/d", Statements: []string{"SELECT"}})
	f.Fuzz(func(t *testing.T, in []byte) {
		rw := &readWriter{Reader: bytes.NewReader(in)}
		s, err := readStartup(rw)
		if out := rw.out.String(); len(out) > 2 || strings.Trim(out, "N") != "" {
			t.Fatalf("%q is answered with %q", in, out)
		}
		if err != nil || s.cancels {
			return
		}
		to, err := s.check(d, "tides")
		if err != nil {
			return
		}
		for name := range to {
			switch name {
			case "user", "database", "options", "role", "replication", "session_authorization", "search_path":
				t.Errorf("%q sets %s", in, name)
			}
		}
		if to["client_encoding"] != "UTF8" || to["standard_conforming_strings"] != "on" {
			t.Errorf("%q has statements read otherwise than they are judged: %v", in, to)
		}
	})
}

func TestCommandTagsAreCountedByTheirCommand(t *testing.T) {
	for tag, want := range map[string]struct {
		command string
		rows    int64
	}{
		"SELECT 12\x00": {"SELECT", 12}, "INSERT 0 5\x00": {"INSERT", 5}, "CREATE TABLE\x00": {"CREATE TABLE", 0}, "COPY 7\x00": {"COPY", 7},
		"BEGIN\x00": {"BEGIN", 0}, "\x00": {"OTHER", 0}, "select 1": {"OTHER", 1}, "SELECT 99999999999999999999": {"SELECT", 9223372036854775807},
		"SELECT -5": {"SELECT", 0}, strings.Repeat("A", 99): {"OTHER", 0}, "SELECT\x00;DROP 5": {"SELECT", 5},
	} {
		if command, rows := commandTag([]byte(tag)); command != want.command || rows != want.rows {
			t.Errorf("%q counts as %s with %d rows", tag, command, rows)
		}
	}
}

func TestLoginIsFoundInWhatBrokersGive(t *testing.T) {
	d := definition(t, database.Definition{Upstream: "postgres://db.example/x"})
	field := func(pairs ...string) (list []link.Field) {
		for i := 0; i < len(pairs); i += 2 {
			list = append(list, link.Field{Name: pairs[i], Value: []byte(pairs[i+1])})
		}
		return list
	}
	for _, tt := range []struct {
		name           string
		fields         []link.Field
		user, password string
	}{
		{"a name and a password", field("username", "u", "password", "p"), "u", "p"},
		{"those and a URL", field("username", "u", "password", "p", "url", "postgres://a:b@other/x"), "u", "p"},
		{"a URL", field("url", "postgresql://u:p%2F@db.example:5432/x?sslmode=require"), "u", "p/"},
		{"a secret that is a URL", field("value", "postgres://u:p@db.example/x\n"), "u", "p"},
		{"a URL of another server", field("value", "postgres://u:p@evil.example/x"), "", ""},
		{"a URL of another port", field("value", "postgres://u:p@db.example:5433/x"), "", ""},
		{"a URL without a user", field("value", "postgres://db.example/x"), "", ""},
		{"a password alone", field("value", "p"), "", ""},
		{"nothing", nil, "", ""},
	} {
		l, err := loginOf(d, tt.fields)
		if tt.user == "" {
			if err == nil || strings.Contains(err.Error(), "u:p") {
				t.Errorf("%s: %+v %v", tt.name, l, err)
			}
			continue
		}
		if err != nil || l.user != tt.user || l.password != tt.password {
			t.Errorf("%s: %+v %v", tt.name, l, err)
		}
	}
	named := definition(t, database.Definition{Upstream: "postgres://db.example/x", User: "reporting"})
	if l, err := loginOf(named, field("value", "p")); err != nil || l.user != "reporting" || l.password != "p" {
		t.Errorf("%+v %v", l, err)
	}
}

func TestErrorsNameTheirStateAndNoPassword(t *testing.T) {
	d := definition(t, database.Definition{Upstream: "postgres://db.example/x"})
	err := unreachable(d, &login{password: "hunter22"}, errors.New("it said hunter22"))
	if b := fatal(err); bytes.Contains(b, []byte("hunter22")) || !bytes.Contains(b, []byte("\x00C08006\x00")) {
		t.Errorf("the agent is told %q", b)
	}
	if b := fatal(refuse("anything_else", "no")); !bytes.Contains(b, []byte("\x00C28000\x00")) {
		t.Errorf("the agent is told %q", b)
	}
}

func TestWhatIsSaidOfStatementsFitsARecord(t *testing.T) {
	var c counts
	for i := range 100 {
		c.add(strings.Repeat("X", 60)+string(rune('A'+i%26))+string(rune('A'+i/26)), 1)
	}
	if text, rows, _ := c.sum(); len(text) > 960 || rows != 100 || !strings.Contains(text, "OTHER=") {
		t.Errorf("%d rows and %d bytes: %s", rows, len(text), text)
	}
}
