package databases

import "errors"

func (c *session) serveRedis() error { return errors.New("not yet") }
