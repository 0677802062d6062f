package view

import (
	"time"

	"github.com/spiffe/go-spiffe/v2/spiffeid"
)

// An SSHCA is a CA that certifies SSH keys.
type SSHCA struct {
	Name      string `json:"name"`
	PublicKey string `json:"public_key"` // a line as TrustedUserCAKeys takes it
}

// A CredentialsStatus says which credentials are in force and how many leases
// there are.
type CredentialsStatus struct {
	Dir    string `json:"dir"`
	Count  int    `json:"count"`
	Leases int    `json:"leases"`          // that have not ended
	Stuck  int    `json:"stuck"`           // of them, those that could not be ended
	Error  string `json:"error,omitempty"` // why what is on disk now is not in force
}

// A Lease is a lease as it is listed.
type Lease struct {
	Lease      string    `json:"lease"` // as the log calls it
	Credential string    `json:"credential"`
	SPIFFEID   string    `json:"spiffe_id"`
	State      string    `json:"state"`
	Bind       string    `json:"bind"`
	PID        int       `json:"pid"`
	Unit       string    `json:"unit,omitempty"`
	Upstream   string    `json:"upstream"`
	Handle     string    `json:"handle"` // its name there
	Revocation string    `json:"revocation"`
	Granted    time.Time `json:"granted"`
	Expires    time.Time `json:"expires"`
	Reason     string    `json:"reason,omitempty"` // why it is ending or stuck
	Attempts   int       `json:"attempts,omitempty"`
	Failure    string    `json:"failure,omitempty"` // of the last attempt to revoke it
}

// A Revoked says how far a revocation came.
type Revoked struct {
	Leases     int    `json:"leases"`               // chosen
	Unfinished string `json:"unfinished,omitempty"` // why not all have ended yet; the daemon keeps trying
}

// Where says which leases are meant: all, or those of an identity or a credential
// or both.
type Where struct {
	All        bool
	Identity   spiffeid.ID
	Credential string
}
