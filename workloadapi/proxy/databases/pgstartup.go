package databases

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"

	"github.com/jackc/pgx/v5/pgproto3"

	"github.com/vouchd/vouchd/credential/database"
	"github.com/vouchd/vouchd/workloadapi/proxy/link"
)

// Codes in the place of a protocol version (PostgreSQL's documentation, 53.7).
const (
	codeCancel = 80877102
	codeTLS    = 80877103
	codeGSS    = 80877104
	version3   = 3 << 16
)

// maxStartup bounds an agent's first message, in bytes, as the server does.
const maxStartup = 10_000

// A startup is what an agent wants with its connection.
type startup struct {
	parameters map[string]string
	minor      uint32   // version of the protocol, 3.minor
	extensions []string // of the protocol; none is known here

	cancels     bool // a statement of the connection with this key, and nothing else
	pid, secret uint32
}

var errStartup = errors.New("it does not begin as the protocol of PostgreSQL does (version 3)")

// readStartup reads an agent's first message. Encryption is declined: the socket is this
// host's own.
func readStartup(rw io.ReadWriter) (*startup, error) {
	var declined [2]bool
	for {
		var head [8]byte
		if _, err := io.ReadFull(rw, head[:]); err != nil {
			return nil, err
		}
		length, code := binary.BigEndian.Uint32(head[:4]), binary.BigEndian.Uint32(head[4:])
		if length < 8 || length > maxStartup {
			return nil, errStartup
		}
		body := make([]byte, length-8)
		if _, err := io.ReadFull(rw, body); err != nil {
			return nil, err
		}
		switch {
		case (code == codeTLS || code == codeGSS) && len(body) == 0:
			i := code - codeTLS
			if declined[i] {
				return nil, errStartup
			}
			declined[i] = true
			if _, err := rw.Write([]byte{'N'}); err != nil {
				return nil, err
			}
		case code == codeCancel && len(body) == 8:
			return &startup{cancels: true, pid: head32(body), secret: head32(body[4:])}, nil
		case code>>16 == 3:
			s := &startup{minor: code & 0xffff}
			return s, s.parse(string(body))
		default:
			return nil, errStartup
		}
	}
}

func head32(b []byte) uint32 { return binary.BigEndian.Uint32(b) }

// parse reads pairs of names and values, each ended by a zero byte, and another zero byte.
func (s *startup) parse(body string) error {
	s.parameters = make(map[string]string)
	for {
		name, rest, ok := strings.Cut(body, "\x00")
		if !ok {
			return errStartup
		}
		if name == "" {
			if rest != "" {
				return errStartup
			}
			return nil
		}
		value, rest, ok := strings.Cut(rest, "\x00")
		if !ok {
			return errStartup
		}
		if _, twice := s.parameters[name]; twice {
			return fmt.Errorf("parameter %.40q is given twice", name)
		}
		if strings.HasPrefix(name, "_pq_.") {
			s.extensions = append(s.extensions, name)
		} else {
			s.parameters[name] = value
		}
		body = rest
	}
}

// passed are parameters that go on to the database, in lower case: they are about the
// form of what is sent and received, and about time.
var passed = []string{
	"application_name", "bytea_output", "client_encoding", "client_min_messages", "datestyle", "extra_float_digits",
	"idle_in_transaction_session_timeout", "intervalstyle", "lock_timeout", "statement_timeout", "timezone",
}

// check judges the parameters, and returns those for the database. Who logs in is not
// theirs to say.
func (s *startup) check(d *database.Definition, name string) (map[string]string, error) {
	to := make(map[string]string)
	for _, key := range slices.Sorted(maps.Keys(s.parameters)) {
		value, lower := s.parameters[key], strings.ToLower(key)
		switch {
		case lower == "user":
		case lower == "database":
			// A client that is told of no database names the user's.
			if value != "" && value != d.Name() && value != name && value != s.parameters["user"] {
				return nil, coded("3D000", "database %.60q is not the one that this socket is for, which is %q", value, d.Name())
			}
		case lower == "replication":
			if !slices.Contains([]string{"", "false", "off", "no", "0"}, strings.ToLower(value)) {
				return nil, coded("42501", "replication is not allowed")
			}
		case lower == "standard_conforming_strings" && value == "on":
		case lower == "search_path" && !d.Judged(), slices.Contains(passed, lower):
			if _, twice := to[lower]; twice {
				return nil, coded("42501", "parameter %.40q is given twice", key)
			}
			to[lower] = value
		default:
			return nil, coded("42501", "parameter %.40q is not allowed when connecting; set it afterwards, if the definition allows that", key)
		}
	}
	if d.Judged() {
		if e := strings.ToLower(to["client_encoding"]); e != "" && e != "utf8" && e != "utf-8" && e != "unicode" && e != "'utf-8'" && e != "'utf8'" {
			return nil, coded("42501", "client_encoding %.20q is not allowed: statements are judged in UTF8", to["client_encoding"])
		}
		to["client_encoding"], to["standard_conforming_strings"] = "UTF8", "on"
	}
	if d.ReadOnly {
		to["default_transaction_read_only"] = "on"
	}
	return to, nil
}

// coded is a refusal with a code of SQL's own.
func coded(sqlstate, format string, args ...any) *refusal {
	return &refusal{link.Refuse{Code: "sqlstate:" + sqlstate, Message: fmt.Sprintf(format, args...)}}
}

// states are the codes that SQL has for refusals; any other is 28000: authorization is
// missing.
var states = map[string]string{
	"request_not_allowed": "42501", "lease_revoked": "57P01", "lease_ended": "57P01",
	"limit": "53300", "too_many_refusals": "53300", "log_share": "53300", "busy": "53300",
	"no_daemon": "08006", "internal": "08006", "timeout": "08006", "log_unavailable": "08006", "source_refused": "08006", "source_unavailable": "08006",
	"upstream_unreachable": "08006", "upstream_address": "08006", "upstream_certificate": "08006", "protocol": "08P01",
}

// fatal is the message that ends a connection.
func fatal(err error) []byte {
	state, text := "08006", err.Error()
	var no *refusal
	if errors.As(err, &no) {
		text = no.Message
		if own, ok := strings.CutPrefix(no.Code, "sqlstate:"); ok {
			state = own
		} else if state = states[no.Code]; state == "" {
			state = "28000"
		}
	}
	return errorResponse("FATAL", state, "vouchd: "+text)
}

func errorResponse(severity, state, text string) []byte {
	b, err := (&pgproto3.ErrorResponse{Severity: severity, SeverityUnlocalized: severity, Code: state, Message: strings.ReplaceAll(text, "\x00", "")}).Encode(nil)
	if err != nil {
		panic(err) // it is short
	}
	return b
}
