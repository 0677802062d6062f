package link

import (
	"time"

	"github.com/vouchd/vouchd/credential/database"
)

// Database is what is said of connections to databases, which are not requests: each is
// asked about once, answered once, and ends once. ID names the connection; it is unique
// within the link.
type Database struct {
	ID uint64 `json:"id,omitempty"`

	// From the process.
	Connect *Connect       `json:"connect,omitempty"` // with the connection's descriptor
	Ended   *DatabaseEnded `json:"ended,omitempty"`   // after an answer that allows

	// From the daemon.
	Route  *DatabaseRoute  `json:"route,omitempty"` // one for each definition, and a last one without a name
	Answer *DatabaseAnswer `json:"answer,omitempty"`
	Cut    string          `json:"cut,omitempty"` // why the connection is to end now
}

// A DatabaseRoute is a definition by which connections are made. The socket that listens
// for them comes with it.
type DatabaseRoute struct {
	Name       string               `json:"name,omitempty"`
	Definition *database.Definition `json:"definition,omitempty"`
}

// Connect is a connection of an agent's.
type Connect struct {
	Name   string `json:"name"` // of the definition
	Handle string `json:"handle,omitempty"`
	// Cancel is the connection whose statement this one is to cancel, if it is not to go on
	// to the database itself.
	Cancel uint64 `json:"cancel,omitempty"`
}

// DatabaseAnswer is what becomes of a connection.
type DatabaseAnswer struct {
	Refused *Refuse `json:"refused,omitempty"` // else it is allowed
	Fields  []Field `json:"fields,omitempty"`  // of the credential, and of the client's certificate
}

// The fields of a client's certificate, PEM.
const (
	FieldCertificate = "client_certificate"
	FieldKey         = "client_key"
)

// DatabaseEnded is how a connection went that was allowed.
type DatabaseEnded struct {
	Problem    string        `json:"problem,omitempty"`
	Connected  bool          `json:"connected,omitempty"` // the database let it in
	Sent       int64         `json:"sent,omitempty"`      // bytes to the database
	Received   int64         `json:"received,omitempty"`  // bytes from it
	Rows       int64         `json:"rows,omitempty"`
	Refused    int64         `json:"refused,omitempty"`    // statements that the definition does not allow
	Statements string        `json:"statements,omitempty"` // by command: INSERT=1,SELECT=12
	Duration   time.Duration `json:"duration"`
}
