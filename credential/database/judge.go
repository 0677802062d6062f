package database

import (
	"errors"
	"fmt"
	"strings"
)

// vocabulary is the commands of SQL that a definition can allow. SELECT includes VALUES,
// TABLE, WITH and cursors; CREATE, ALTER and DROP are of any kind of object.
var vocabulary = map[string]bool{
	"SELECT": true, "INSERT": true, "UPDATE": true, "DELETE": true, "MERGE": true, "TRUNCATE": true,
	"COPY TO": true, "COPY FROM": true, "SHOW": true, "EXPLAIN": true, "SET": true,
	"LISTEN": true, "NOTIFY": true, "PREPARE": true, "EXECUTE": true, "CALL": true, "DO": true, "LOCK": true,
	"CREATE": true, "ALTER": true, "DROP": true, "COMMENT": true, "GRANT": true, "REVOKE": true,
	"ANALYZE": true, "VACUUM": true, "REINDEX": true, "REFRESH": true,
}

// reading is the commands that read, and what read_only without a list allows.
var reading = map[string]bool{
	"SELECT": true, "COPY TO": true, "SHOW": true, "EXPLAIN": true, "SET": true, "LISTEN": true, "PREPARE": true, "EXECUTE": true,
}

// harmless are commands that are allowed in any case: they do nothing to data, and drivers
// send them unasked.
var harmless = map[string]bool{
	"BEGIN": true, "START": true, "COMMIT": true, "END": true, "ROLLBACK": true, "ABORT": true, "SAVEPOINT": true, "RELEASE": true,
	"FETCH": true, "MOVE": true, "CLOSE": true, "DEALLOCATE": true, "UNLISTEN": true, "RESET": true, "DISCARD": true,
}

// selects are the words that a query begins with.
var selects = map[string]bool{"SELECT": true, "VALUES": true, "TABLE": true, "WITH": true}

// settings may be set without SET being allowed: drivers do so for each connection.
var settings = map[string]bool{
	"application_name": true, "bytea_output": true, "client_min_messages": true, "datestyle": true, "extra_float_digits": true,
	"idle_in_transaction_session_timeout": true, "intervalstyle": true, "lock_timeout": true, "statement_timeout": true, "timezone": true,
}

// MaxJudged is how long a statement may be that is judged, in bytes.
const MaxJudged = 1 << 20

// Judged reports whether statements are judged at all.
func (d *Definition) Judged() bool { return len(d.allowed) > 0 }

// A judgement is one statement that is being judged.
type judgement struct {
	*Definition
	scan
	command string   // by which the statement is allowed
	last    [3]token // the latest first
}

// Judge returns nil if a statement may be sent. Its error says why not, and has nothing of
// the statement's but words of SQL.
func (d *Definition) Judge(sql string) error {
	if len(sql) > MaxJudged {
		return fmt.Errorf("it has %d bytes, more than the %d that are judged", len(sql), MaxJudged)
	}
	if strings.IndexByte(sql, 0) >= 0 {
		return errZero
	}
	j := &judgement{Definition: d, scan: scan{sql: sql}}
	if err := j.nested(0); err != nil {
		return err
	}
	return j.rest()
}

func (d *Definition) allows(command string) error {
	if d.allowed[command] {
		return nil
	}
	return fmt.Errorf("%s is not among the statements that are allowed", command)
}

// take returns the next token. Each is held to what is refused wherever it stands.
func (j *judgement) take() (token, error) {
	t, err := j.scan.next()
	if err == nil {
		err = j.check(t)
	}
	j.last = [3]token{t, j.last[0], j.last[1]}
	return t, err
}

// check looks at a token in its place. Commands that change data may be parts of others, as
// in WITH; which part they are is not asked.
func (j *judgement) check(t token) error {
	switch {
	case t.sign(';'):
		return j.ended()
	case (t.kind == word || t.kind == quoted) && strings.EqualFold(t.text, "set_config") && (j.ReadOnly || !j.allowed["SET"]):
		return errors.New("set_config in it would change settings; use SET")
	case (t.kind == word || t.kind == quoted) && strings.EqualFold(t.text, "pg_settings") && (j.allowed["UPDATE"] || j.allowed["MERGE"]) && !j.allowed["SET"]:
		return errors.New("settings can be changed by way of pg_settings in it; use SHOW")
	case t.is("INTO"):
		if !j.last[0].is("INSERT", "MERGE") && !j.allowed["CREATE"] {
			return errors.New("INTO in it would make a table, and CREATE is not among the statements that are allowed")
		}
	case t.is("INSERT", "UPDATE", "DELETE", "MERGE") && j.changes(t):
		return j.allows(t.text)
	}
	return nil
}

// changes reports whether a word of a command that changes data may be one. Where it
// locks rows, or is a right or an event, it is none.
func (j *judgement) changes(t token) bool {
	switch {
	case t.is("UPDATE") && (j.last[0].is("FOR") || j.last[0].is("KEY") && j.last[1].is("NO") && j.last[2].is("FOR")):
		return false // FOR is reserved, and the name of nothing
	case j.command == "GRANT" || j.command == "REVOKE":
		return false
	case (j.command == "CREATE" || j.command == "ALTER") && j.last[0].is("ON"):
		return false
	}
	return true
}

// ended refuses what follows a semicolon.
func (j *judgement) ended() error {
	for {
		t, err := j.scan.next()
		switch {
		case err != nil:
			return err
		case t.kind == none:
			return nil
		case !t.sign(';'):
			return errors.New("there are several statements in it; send each by itself")
		}
	}
}

// rest reads what is left of a statement.
func (j *judgement) rest() error {
	for {
		t, err := j.take()
		if err != nil || t.kind == none {
			return err
		}
	}
}

// maxNested bounds how many statements may be in one another.
const maxNested = 8

// nested judges a statement, or one in another, by its first word, and what that makes of
// the next.
func (j *judgement) nested(depth int) error {
	if depth > maxNested {
		return errors.New("it is nested too deeply")
	}
	t, err := j.scan.next()
	for err == nil && (t.sign('(') || t.sign(';') && depth == 0) {
		if t.sign(';') {
			return j.ended()
		}
		t, err = j.scan.next()
	}
	switch {
	case err != nil:
		return err
	case t.kind == none && depth == 0:
		return nil // nothing: the server answers so
	case t.kind != word:
		return errors.New("it does not begin with a command")
	}
	return j.begin(t, depth)
}

func (j *judgement) begin(t token, depth int) error {
	if j.command == "" {
		j.command = t.text
	}
	j.last = [3]token{t}
	switch {
	case harmless[t.text]:
		return j.harmless(t)
	case selects[t.text]:
		return j.allows("SELECT")
	}
	switch t.text {
	case "DECLARE":
		return j.allows("SELECT")
	case "COPY":
		return j.copy(depth)
	case "EXPLAIN":
		return j.explain(depth)
	case "PREPARE":
		return j.prepare(depth)
	case "SET":
		return j.set()
	}
	if vocabulary[t.text] {
		return j.allows(t.text)
	}
	return fmt.Errorf("%.40s is not a command that can be allowed", t.text)
}

// harmless refuses the exceptions.
func (j *judgement) harmless(t token) error {
	for {
		next, err := j.take()
		switch {
		case err != nil || next.kind == none:
			return err
		case next.is("PREPARED"):
			return errors.New("transactions in two phases are not allowed")
		case t.is("BEGIN", "START") && next.is("WRITE") && j.ReadOnly:
			return errReadOnly
		}
	}
}

var errReadOnly = errors.New("the connection is read-only")

// copy judges COPY: between the server and the client it may be, but not with a file or a
// program of the server's.
func (j *judgement) copy(depth int) error {
	t, err := j.take()
	if err == nil && t.sign('(') {
		if err := j.nested(depth + 1); err != nil {
			return err
		}
	}
	for err == nil && t.kind != none {
		if t, err = j.take(); err != nil {
			return err
		}
		if j.depth > 0 || !t.is("TO", "FROM") {
			continue
		}
		if err := j.allows("COPY " + t.text); err != nil {
			return err
		}
		if t, err = j.take(); err == nil && !t.is("STDIN", "STDOUT") {
			err = errors.New("COPY with a file or a program of the server's is not allowed; use STDIN or STDOUT")
		}
		return err
	}
	if err == nil {
		err = errors.New("COPY in it has neither TO nor FROM")
	}
	return err
}

// explain judges EXPLAIN, and what is explained: that may be run.
func (j *judgement) explain(depth int) error {
	if err := j.allows("EXPLAIN"); err != nil {
		return err
	}
	t, err := j.take()
	for err == nil && t.is("ANALYZE", "ANALYSE", "VERBOSE") {
		t, err = j.take()
	}
	if err == nil && t.sign('(') {
		if t, err = j.take(); err == nil && !t.sign('(') && !selects[t.text] { // options
			for err == nil && t.kind != none && j.depth > 0 {
				t, err = j.take()
			}
			if err != nil {
				return err
			}
			return j.nested(depth + 1)
		}
		for err == nil && t.sign('(') {
			t, err = j.take()
		}
	}
	if err == nil && t.kind != word {
		err = errors.New("EXPLAIN in it is of no command")
	}
	if err != nil {
		return err
	}
	if depth >= maxNested {
		return errors.New("it is nested too deeply")
	}
	return j.begin(t, depth+1)
}

// prepare judges PREPARE, and the statement that is prepared.
func (j *judgement) prepare(depth int) error {
	if err := j.allows("PREPARE"); err != nil {
		return err
	}
	t, err := j.take()
	if err == nil && t.is("TRANSACTION") {
		err = errors.New("transactions in two phases are not allowed")
	}
	for err == nil && t.kind != none {
		if t, err = j.take(); err == nil && j.depth == 0 && t.is("AS") {
			return j.nested(depth + 1)
		}
	}
	if err == nil {
		err = errors.New("PREPARE in it is of no statement")
	}
	return err
}

// set judges SET by what is set.
func (j *judgement) set() error {
	t, err := j.take()
	for err == nil && t.is("SESSION", "LOCAL") {
		t, err = j.take()
	}
	switch {
	case err != nil:
		return err
	case t.is("TRANSACTION", "CHARACTERISTICS", "CONSTRAINTS"):
		for err == nil && t.kind != none {
			if t, err = j.take(); err == nil && j.ReadOnly && t.is("WRITE") {
				err = errReadOnly
			}
		}
		return err
	case t.is("ROLE", "AUTHORIZATION"):
		return errors.New("SET ROLE and SET SESSION AUTHORIZATION are not allowed")
	case t.is("TIME", "XML"):
		return nil
	case t.is("NAMES"):
		return j.encoding()
	case t.kind != word && t.kind != quoted:
		return errors.New("SET in it names no setting")
	}
	return j.setting(strings.ToLower(t.text))
}

func (j *judgement) setting(name string) error {
	switch name {
	case "role", "session_authorization":
		return errors.New("SET ROLE and SET SESSION AUTHORIZATION are not allowed")
	case "transaction_read_only", "default_transaction_read_only":
		if j.ReadOnly {
			return errReadOnly
		}
	case "client_encoding":
		return j.encoding()
	case "standard_conforming_strings":
		if v, err := j.value(); err != nil || v != "on" && v != "true" {
			return errors.Join(err, errors.New("standard_conforming_strings stays on, where statements are judged"))
		}
		return nil
	}
	if settings[name] {
		return nil
	}
	if err := j.allows("SET"); err != nil {
		return fmt.Errorf("SET of this setting: %w", err)
	}
	return nil
}

// value returns what something is set to, in lower case.
func (j *judgement) value() (string, error) {
	t, err := j.take()
	for err == nil && (t.is("TO") || t.sign('=')) {
		t, err = j.take()
	}
	return strings.ToLower(t.text), err
}

// encoding keeps text in the one encoding in which it is judged.
func (j *judgement) encoding() error {
	v, err := j.value()
	if err == nil && v != "utf8" && v != "utf-8" && v != "unicode" {
		err = errors.New("client_encoding stays UTF8, where statements are judged")
	}
	return err
}
