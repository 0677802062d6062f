package door

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strconv"
	"strings"
)

// Where a chunked reader is.
const (
	inChunks = iota
	inTrailer
	over
)

// A chunked reader reads content that an SDK has signed chunk by chunk with its
// placeholder ("Signature Calculations for the Authorization Header: Transferring Payload
// in Multiple Chunks", Amazon S3 API Reference), and leaves those signatures out. Nobody
// checks them: they say only that the caller holds its handle.
type chunked struct {
	io.ReadCloser      // the content
	framed        bool // chunks stay chunks, with the trailer that follows them

	in      *bufio.Reader
	pending []byte // to be read before more comes of in
	left    int64  // bytes of the chunk
	state   int
}

// withoutChunks has the data alone sent.
func withoutChunks(out *http.Request) error {
	length, err := strconv.ParseInt(out.Header.Get("X-Amz-Decoded-Content-Length"), 10, 64)
	if err != nil || length < 0 {
		return refuse(http.StatusBadRequest, "content", "the content is chunked, and X-Amz-Decoded-Content-Length does not say how long it is")
	}
	var rest []string
	for _, v := range out.Header.Values("Content-Encoding") {
		for e := range strings.SplitSeq(v, ",") {
			if e = strings.TrimSpace(e); e != "" && !strings.EqualFold(e, "aws-chunked") {
				rest = append(rest, e)
			}
		}
	}
	if out.Header.Del("Content-Encoding"); len(rest) > 0 {
		out.Header.Set("Content-Encoding", strings.Join(rest, ","))
	}
	out.Header.Del("X-Amz-Decoded-Content-Length")
	if out.ContentLength = length; length == 0 {
		out.Body = nil
		return nil
	}
	out.Body = &chunked{ReadCloser: out.Body}
	return nil
}

// Read implements [io.Reader].
func (c *chunked) Read(p []byte) (int, error) {
	if c.in == nil {
		c.in = bufio.NewReader(c.ReadCloser)
	}
	for len(p) > 0 {
		switch {
		case len(c.pending) > 0:
			n := copy(p, c.pending)
			c.pending = c.pending[n:]
			return n, nil
		case c.left > 0:
			n, err := c.in.Read(p[:min(int64(len(p)), c.left)])
			if c.left -= int64(n); c.left == 0 && err == nil {
				err = c.end()
			}
			return n, c.wrong(err)
		case c.state == over:
			return 0, io.EOF
		}
		if err := c.next(); err != nil {
			return 0, c.wrong(err)
		}
	}
	return 0, nil
}

// wrong is what is said of content that cannot be read.
func (c *chunked) wrong(err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, io.EOF):
		err = io.ErrUnexpectedEOF
	case !errors.Is(err, errChunk) && !errors.Is(err, bufio.ErrBufferFull):
		return err
	}
	return refuse(http.StatusBadRequest, "content", "the content is not in the chunks that X-Amz-Content-Sha256 says: %v", err)
}

var errChunk = errors.New("not a chunk")

// line reads a line, which ends with CRLF; of a trailer MinIO's SDK ends one with LF CRLF.
func (c *chunked) line() (string, error) {
	b, err := c.in.ReadSlice('\n')
	if err != nil {
		return "", err
	}
	s, ok := strings.CutSuffix(string(b), "\r\n")
	if !ok && c.state == inTrailer {
		s = strings.TrimSuffix(s, "\n")
		if b, err = c.in.Peek(2); err != nil {
			return "", err
		}
		ok = string(b) == "\r\n"
		c.in.Discard(2) // there they are
	}
	if !ok || strings.ContainsRune(s, '\r') {
		return "", fmt.Errorf("%w: a line ends without CRLF", errChunk)
	}
	return s, nil
}

// next reads the beginning of a chunk, or a line of what follows the last.
func (c *chunked) next() error {
	line, err := c.line()
	switch {
	case err != nil:
		return err
	case c.state == inTrailer:
		return c.trailer(line)
	}
	size, signature, _ := strings.Cut(line, ";")
	n, err := strconv.ParseUint(size, 16, 62)
	if err != nil || !strings.HasPrefix(signature, "chunk-signature=") {
		return fmt.Errorf("%w: %.100q", errChunk, line)
	}
	c.frame(strconv.FormatUint(n, 16))
	if c.left = int64(n); n == 0 {
		c.state = inTrailer
	}
	return nil
}

func (c *chunked) trailer(line string) error {
	name, _, ok := strings.Cut(line, ":")
	switch {
	case line == "":
		c.frame("")
		c.state = over
		if _, err := c.in.ReadByte(); !errors.Is(err, io.EOF) {
			return fmt.Errorf("%w: there is more after the last", errChunk)
		}
	case !c.framed || !ok:
		return fmt.Errorf("%w: %.100q after the last", errChunk, line)
	case !strings.EqualFold(name, "x-amz-trailer-signature"):
		c.frame(line)
	}
	return nil
}

// end reads what ends a chunk.
func (c *chunked) end() error {
	line, err := c.line()
	if err == nil && line != "" {
		err = fmt.Errorf("%w: it is longer than it says", errChunk)
	}
	c.frame("")
	return err
}

// frame passes on a line that is not of the data.
func (c *chunked) frame(line string) {
	if c.framed {
		c.pending = append(append(c.pending, line...), "\r\n"...)
	}
}
