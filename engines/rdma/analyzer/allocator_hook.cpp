// An allocator of PyTorch's CPU memory that knows which operation is running.
//
// It stands before the allocator it found (c10::SetCPUAllocator) and passes everything through, except on a thread that
// has entered a trace. There it numbers the allocations made since the trace announced its current operation, remembers
// which of them each live buffer came from, and, where a buffer of registered memory is bound to (operation, n-th
// allocation), hands out that buffer instead of fresh memory. Only PyTorch's c10 library is needed, not Python's headers.
#include <c10/core/Allocator.h>
#include <c10/core/CPUAllocator.h>

#include <atomic>
#include <cstdint>
#include <mutex>
#include <unordered_map>

namespace {

struct Site {
  uint64_t operation;
  uint64_t ordinal;
  uint64_t nbytes;
};

struct Buffer {
  void* address;
  uint64_t nbytes;
};

struct Trace {
  uint64_t operation = 0;
  uint64_t ordinal = 0;
  uint64_t allocations = 0;
  uint64_t served = 0;
  std::unordered_map<uint64_t, std::unordered_map<uint64_t, Buffer>> bound;  // operation -> ordinal -> buffer
  const std::unordered_map<uint64_t, Buffer>* here = nullptr;                // those of the current operation
};

struct Origin {
  Trace* trace;
  Site site;
};

thread_local Trace* current = nullptr;

std::mutex guard;                              // of the two maps: buffers may be freed by any thread
std::unordered_map<void*, Origin> traced;      // live buffers of ordinary memory, allocated inside a trace
std::unordered_map<void*, Origin> lent;        // bound buffers that a tensor holds at this moment
std::atomic<uint64_t> watched{0};              // entries in both maps; zero spares `release` the lock
std::atomic<int64_t> balance{0};               // buffers handed out by this allocator and not yet given back

c10::Allocator* base = nullptr;

void release(void* address) {
  if (address == nullptr) return;
  balance.fetch_sub(1, std::memory_order_relaxed);
  if (watched.load(std::memory_order_acquire) != 0) {
    std::lock_guard<std::mutex> lock(guard);
    if (lent.erase(address) != 0) {
      watched.fetch_sub(1, std::memory_order_release);
      return;  // registered memory belongs to its arena
    }
    if (traced.erase(address) != 0) watched.fetch_sub(1, std::memory_order_release);
  }
  base->raw_deleter()(address);
}

// The buffer bound to this allocation, unless a tensor of an earlier step still holds it.
void* borrow(Trace& trace, const Site& site) {
  if (trace.here == nullptr) return nullptr;
  const auto found = trace.here->find(site.ordinal);
  if (found == trace.here->end() || found->second.nbytes != site.nbytes) return nullptr;
  std::lock_guard<std::mutex> lock(guard);
  if (!lent.emplace(found->second.address, Origin{&trace, site}).second) return nullptr;
  watched.fetch_add(1, std::memory_order_release);
  ++trace.served;
  return found->second.address;
}

struct Hook final : c10::Allocator {
  c10::DataPtr allocate(size_t nbytes) override {
    Trace* const trace = current;
    if (trace == nullptr || nbytes == 0) return pass_through(nbytes);
    const Site site{trace->operation, trace->ordinal++, nbytes};
    ++trace->allocations;
    if (void* const address = borrow(*trace, site)) {
      balance.fetch_add(1, std::memory_order_relaxed);
      return {address, address, &release, c10::Device(c10::DeviceType::CPU)};
    }
    c10::DataPtr buffer = pass_through(nbytes);
    if (buffer.get_deleter() != &release) return buffer;  // its end would go unseen
    std::lock_guard<std::mutex> lock(guard);
    if (traced.insert_or_assign(buffer.get(), Origin{trace, site}).second) watched.fetch_add(1, std::memory_order_release);
    return buffer;
  }

  // `release` frees what either allocator made, so buffers of the time before the hook may end here as well.
  c10::DeleterFnPtr raw_deleter() const override { return &release; }

  void copy_data(void* target, const void* source, std::size_t nbytes) const override {
    default_copy_data(target, source, nbytes);
  }

 private:
  static c10::DataPtr pass_through(size_t nbytes) {
    c10::DataPtr buffer = base->allocate(nbytes);
    if (buffer.compare_exchange_deleter(base->raw_deleter(), &release) && buffer.get() != nullptr)
      balance.fetch_add(1, std::memory_order_relaxed);
    return buffer;
  }
};

Hook hook;
constexpr uint8_t kPriority = 1;  // PyTorch's own is 0; an allocator of a higher priority keeps its place

}  // namespace

extern "C" {

int hook_install() {
  if (c10::GetCPUAllocator() == &hook) return 1;
  c10::Allocator* const before = c10::GetCPUAllocator();
  if (before->raw_deleter() == nullptr) return 0;
  base = before;
  c10::SetCPUAllocator(&hook, kPriority);
  return c10::GetCPUAllocator() == &hook;
}

int64_t hook_balance() { return balance.load(); }

Trace* trace_new() { return new Trace; }

// Buffers outlive their trace: forget where they came from, not that registered memory is not ours to free.
void trace_delete(Trace* trace) {
  std::lock_guard<std::mutex> lock(guard);
  for (auto entry = traced.begin(); entry != traced.end();) {
    if (entry->second.trace == trace) {
      entry = traced.erase(entry);
      watched.fetch_sub(1, std::memory_order_release);
    } else {
      ++entry;
    }
  }
  for (auto& [address, origin] : lent)
    if (origin.trace == trace) origin.trace = nullptr;
  delete trace;
}

// Puts `trace` (or none) in charge of this thread and returns the one that was.
Trace* trace_enter(Trace* trace) {
  Trace* const before = current;
  current = trace;
  return before;
}

void trace_operation(Trace* trace, uint64_t operation) {
  trace->operation = operation;
  trace->ordinal = 0;
  const auto found = trace->bound.find(operation);
  trace->here = found == trace->bound.end() ? nullptr : &found->second;
}

void trace_bind(Trace* trace, uint64_t operation, uint64_t ordinal, void* address, uint64_t nbytes) {
  trace->bound[operation][ordinal] = Buffer{address, nbytes};
}

void trace_unbind_all(Trace* trace) {
  trace->here = nullptr;
  trace->bound.clear();
}

// Which allocation of this trace made the live buffer at `address`; 0 where none did.
int trace_origin(Trace* trace, void* address, Site* site) {
  std::lock_guard<std::mutex> lock(guard);
  for (const auto* map : {&traced, &lent}) {
    const auto found = map->find(address);
    if (found == map->end() || found->second.trace != trace) continue;
    *site = found->second.site;
    return 1;
  }
  return 0;
}

int buffer_is_lent(void* address) {
  std::lock_guard<std::mutex> lock(guard);
  return lent.count(address) != 0;
}

uint64_t trace_allocations(Trace* trace) { return trace->allocations; }
uint64_t trace_served(Trace* trace) { return trace->served; }
}
