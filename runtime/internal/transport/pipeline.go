package transport

import (
	"slices"
	"sync"
	"time"

	"github.com/hashicorp/raft"
)

// maxInFlight is how many requests of one pipeline wait for their answers.
const maxInFlight = 8

// A pipeline sends entries of one group to one follower. It ends at the first error, also when an
// answer does not come in time: a follower whose disk hangs must not keep it for ever.
// Raft then goes back to one request at a time.
type pipeline struct {
	group  *Group
	link   *link
	places chan struct{}          // one taken for each request in flight
	ready  chan raft.AppendFuture // answered, to be read by Raft
	closed chan struct{}

	mu     sync.Mutex // guards what follows
	flying []*future  // in the order they were sent
	late   []*future  // answered, and ready is full
	timer  *time.Timer
	err    error // why it ended
}

func newPipeline(g *Group, l *link) *pipeline {
	return &pipeline{
		group:  g,
		link:   l,
		places: make(chan struct{}, maxInFlight),
		ready:  make(chan raft.AppendFuture, maxInFlight),
		closed: make(chan struct{}),
	}
}

// AppendEntries sends entries. It blocks while too many are in flight.
func (p *pipeline) AppendEntries(req *raft.AppendEntriesRequest, resp *raft.AppendEntriesResponse) (raft.AppendFuture, error) {
	size, err := p.group.net.shorten(req)
	if err != nil {
		return nil, err
	}
	select {
	case p.places <- struct{}{}:
	case <-p.closed:
		return nil, raft.ErrPipelineShutdown
	case <-p.group.closed:
		return nil, raft.ErrPipelineShutdown
	}
	now := time.Now()
	f := &future{
		pipeline: p, request: req, response: resp, start: now,
		deadline: now.Add(p.group.net.appendTimeout(size)),
		done:     make(chan struct{}),
	}
	if !p.launch(f) {
		return nil, raft.ErrPipelineShutdown
	}
	id, err := p.link.send(p.group.id, kindAppend, req, f, f.deadline)
	if err != nil {
		p.end(err)
		return nil, err
	}
	f.sent(id)
	return f, nil
}

// launch notes a request before it is sent.
func (p *pipeline) launch(f *future) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return false
	}
	p.flying = append(p.flying, f)
	if p.timer == nil {
		p.timer = time.AfterFunc(time.Until(f.deadline), p.expire)
	}
	return true
}

// land is called when a request has its answer. Its place becomes free when Raft may have it: if
// Raft does not keep up, only when Raft has read it.
func (p *pipeline) land(f *future) {
	p.mu.Lock()
	if i := slices.Index(p.flying, f); i >= 0 { // nearly always the first
		p.flying = slices.Delete(p.flying, i, i+1)
	}
	landed := false
	if len(p.late) == 0 {
		select {
		case p.ready <- f:
			landed = true
		default:
		}
	}
	if !landed && p.err == nil {
		p.late = append(p.late, f)
		if len(p.late) == 1 {
			p.group.net.run(p.deliver)
		}
	}
	p.mu.Unlock()
	if landed {
		<-p.places
	}
	if f.err != nil {
		p.end(f.err)
	}
}

// deliver is the goroutine that waits for Raft to read, as long as there are answers that it has
// not kept up with, and the pipeline is open.
func (p *pipeline) deliver() {
	for f := p.oldestLate(); f != nil; f = p.nextLate() {
		select {
		case p.ready <- f:
			<-p.places
		case <-p.closed:
			return
		}
	}
}

func (p *pipeline) oldestLate() *future {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.late[0]
}

// nextLate goes on behind what was delivered.
func (p *pipeline) nextLate() *future {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.late = p.late[1:]; len(p.late) == 0 {
		return nil
	}
	return p.late[0]
}

// expire looks whether the oldest request has waited too long. It runs on a timer, which is only
// set anew here: not for every request.
func (p *pipeline) expire() {
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return
	}
	if len(p.flying) == 0 {
		p.timer = nil
		p.mu.Unlock()
		return
	}
	oldest := p.flying[0]
	if left := time.Until(oldest.deadline); left > 0 {
		p.timer.Reset(left)
		p.mu.Unlock()
		return
	}
	p.mu.Unlock()
	p.link.expired(oldest.start)
	p.end(ErrTimeout)
}

// Consumer returns the requests that have been answered.
func (p *pipeline) Consumer() <-chan raft.AppendFuture { return p.ready }

// Close ends the pipeline. Answers that come later are ignored.
func (p *pipeline) Close() error {
	p.end(raft.ErrPipelineShutdown)
	return nil
}

// end ends the pipeline and everything in flight. What has failed goes to Raft, which gives up the
// pipeline at the first.
func (p *pipeline) end(err error) {
	p.mu.Lock()
	if p.err != nil {
		p.mu.Unlock()
		return
	}
	p.err = err
	close(p.closed)
	if p.timer != nil {
		p.timer.Stop()
	}
	flying := slices.Clone(p.flying)
	p.mu.Unlock()
	for _, f := range flying {
		f.abandon(err)
	}
}

// A future is one request of a pipeline.
type future struct {
	pipeline *pipeline
	request  *raft.AppendEntriesRequest
	response *raft.AppendEntriesResponse
	start    time.Time
	deadline time.Time
	done     chan struct{}
	err      error // set before done is closed

	mu        sync.Mutex // guards what follows
	id        uint64     // at the link; 0: not sent yet
	abandoned error
}

// sent notes the number of the request, which may have been abandoned meanwhile.
func (f *future) sent(id uint64) {
	f.mu.Lock()
	f.id = id
	err := f.abandoned
	f.mu.Unlock()
	if err != nil {
		f.drop(err)
	}
}

// abandon fails the request, unless its answer is here.
func (f *future) abandon(err error) {
	f.mu.Lock()
	f.abandoned = err
	sent := f.id != 0
	f.mu.Unlock()
	if sent {
		f.drop(err)
	}
}

func (f *future) drop(err error) {
	if f.pipeline.link.take(f.id) != nil {
		f.failed(err)
	}
}

func (f *future) answered(k kind, payload []byte) {
	f.err = f.pipeline.link.decode(k, payload, f.response)
	close(f.done)
	f.pipeline.land(f)
}

func (f *future) failed(err error) {
	f.err = err
	close(f.done)
	f.pipeline.land(f)
}

// Error waits for the answer.
func (f *future) Error() error {
	<-f.done
	return f.err
}

// Start returns when the request was made.
func (f *future) Start() time.Time { return f.start }

// Request returns the request.
func (f *future) Request() *raft.AppendEntriesRequest { return f.request }

// Response returns the answer, after Error has returned.
func (f *future) Response() *raft.AppendEntriesResponse { return f.response }
