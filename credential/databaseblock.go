package credential

import (
	"errors"

	"github.com/vouchd/vouchd/config"
	"github.com/vouchd/vouchd/credential/database"
)

// database reads to which database connections are made with the credential.
func (l *loader) database(d *Definition, w *written) {
	if w.Proxy.Given() {
		l.problems.Add(w.Database.Pos, "credential %s has a proxy block and a database block; remove one, or define it twice", d.Name)
		return
	}
	if len(d.Name) > maxSocketName {
		l.problems.Add(w.Name.Pos, "name %.80q is part of its socket's path, where it may have %d bytes; shorten it", d.Name, maxSocketName)
	}
	var err error
	d.Database, err = database.Load(w.Database)
	if found, ok := errors.AsType[config.Errors](err); ok {
		l.problems = append(l.problems, found...)
	} else if err != nil {
		l.problems.Add(w.Database.Pos, "database: %v", err)
	}
}

// maxSocketName leaves room for the rest of a socket's path, of 107 bytes, below
// /run/vouchd and some longer directories.
const maxSocketName = 48
