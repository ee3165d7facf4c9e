#include "shared.h"

#include <algorithm>
#include <cstring>

#include "machine.h"

namespace sparsed::emulator {
namespace {

constexpr size_t kWord = 4;
constexpr std::byte kPoison{0xff};  // NaN in every floating-point type

std::string place(uint32_t address) { return "shared memory at byte " + std::to_string(address); }

}  // namespace

void join(Clock& into, const Clock& from) {
  for (size_t i = 0; i < into.size(); ++i) into[i] = std::max(into[i], from[i]);
}

SharedMemory::SharedMemory(size_t bytes, int agents)
    : agents_(agents),
      bytes_((bytes + kWord - 1) / kWord * kWord, kPoison),
      words_(bytes_.size() / kWord),
      reads_(words_.size() * static_cast<size_t>(agents)) {}

// Accesses are aligned to their size, ranges (16 bytes and more) to 16.
size_t SharedMemory::check(uint32_t address, size_t bytes, const char* what) const {
  if (bytes % kWord != 0 || address % std::min<size_t>(bytes, 16) != 0) {
    fail(std::string("unaligned ") + what + " of " + std::to_string(bytes) + " bytes, " + place(address));
  }
  if (bytes > bytes_.size() || address > bytes_.size() - bytes) {
    fail(std::string(what) + " outside the " + std::to_string(bytes_.size()) + " bytes of " + place(address));
  }
  return address / kWord;
}

bool SharedMemory::ordered(const Touch& before, const Actor& actor) {
  if (before.epoch == 0) return true;
  const uint32_t seen = (*actor.seen)[static_cast<size_t>(before.agent)];
  if (before.agent != actor.agent) return before.epoch <= seen;
  return (before.lane >= 0 && before.lane == actor.lane) || before.epoch < seen;
}

void SharedMemory::check_proxy(const Word& word, uint32_t address, const Actor& actor) {
  if (!actor.fenced || word.written.epoch == 0) return;
  if (word.written.epoch <= (*actor.fenced)[static_cast<size_t>(word.written.agent)]) return;
  fail("asynchronous access to what ordinary stores wrote, without fence.proxy.async, " + place(address));
}

void SharedMemory::check_write(size_t word, const Actor& actor) const {
  const Word& w = words_[word];
  const uint32_t address = static_cast<uint32_t>(word * kWord);
  if (w.in_flight) fail("write under an asynchronous copy that nobody waited for, " + place(address));
  if (w.async_readers) fail("write while an asynchronous engine reads, " + place(address));
  if (!ordered(w.written, actor)) fail("race: write after write, " + place(address));
  check_proxy(w, address, actor);
  for (int agent = 0; agent < agents_; ++agent) {
    if (!ordered(reads_[word * static_cast<size_t>(agents_) + static_cast<size_t>(agent)], actor)) {
      fail("race: write after read, " + place(address));
    }
  }
}

void SharedMemory::mark_read(size_t word, const Actor& actor) {
  const Word& w = words_[word];
  const uint32_t address = static_cast<uint32_t>(word * kWord);
  if (w.in_flight) fail("read under an asynchronous copy that nobody waited for, " + place(address));
  if (!w.defined) fail("read of what was never written, " + place(address));
  if (!ordered(w.written, actor)) fail("race: read after write, " + place(address));
  check_proxy(w, address, actor);
  Touch& read = reads_[word * static_cast<size_t>(agents_) + static_cast<size_t>(actor.agent)];
  const uint32_t epoch = (*actor.seen)[static_cast<size_t>(actor.agent)];
  const bool several = read.epoch == epoch && read.lane != actor.lane;
  read = {epoch, static_cast<int16_t>(actor.agent), static_cast<int16_t>(several ? -1 : actor.lane)};
}

void SharedMemory::mark_written(size_t word, const Actor& actor) {
  Word& w = words_[word];
  w.defined = true;
  w.written = {(*actor.seen)[static_cast<size_t>(actor.agent)], static_cast<int16_t>(actor.agent),
               static_cast<int16_t>(actor.lane)};
  for (int agent = 0; agent < agents_; ++agent) {
    reads_[word * static_cast<size_t>(agents_) + static_cast<size_t>(agent)] = {};
  }
}

const std::byte* SharedMemory::read(uint32_t address, size_t bytes, const Actor& actor) {
  const size_t word = check(address, bytes, "read");
  for (size_t i = 0; i < bytes / kWord; ++i) mark_read(word + i, actor);
  return bytes_.data() + address;
}

std::byte* SharedMemory::write(uint32_t address, size_t bytes, const Actor& actor) {
  const size_t word = check(address, bytes, "write");
  for (size_t i = 0; i < bytes / kWord; ++i) {
    check_write(word + i, actor);
    mark_written(word + i, actor);
  }
  return bytes_.data() + address;
}

void SharedMemory::begin_flight(uint32_t address, size_t bytes, const Actor& actor) {
  const size_t word = check(address, bytes, "asynchronous write");
  for (size_t i = 0; i < bytes / kWord; ++i) {
    check_write(word + i, actor);
    words_[word + i].in_flight = true;
  }
  std::fill_n(bytes_.begin() + address, bytes, kPoison);
}

void SharedMemory::end_flight(uint32_t address, const void* data, size_t bytes, const Actor& actor) {
  const size_t word = check(address, bytes, "asynchronous write");
  for (size_t i = 0; i < bytes / kWord; ++i) {
    words_[word + i].in_flight = false;
    mark_written(word + i, actor);
  }
  std::memcpy(bytes_.data() + address, data, bytes);
}

void SharedMemory::land(uint32_t address, const void* data, size_t bytes) {
  std::memcpy(bytes_.data() + address, data, bytes);
}

void SharedMemory::begin_read(uint32_t address, size_t bytes, const Actor& actor) {
  const size_t word = check(address, bytes, "asynchronous read");
  for (size_t i = 0; i < bytes / kWord; ++i) {
    mark_read(word + i, actor);
    ++words_[word + i].async_readers;
  }
}

void SharedMemory::end_read(uint32_t address, size_t bytes, const Actor& actor) {
  const size_t word = check(address, bytes, "asynchronous read");
  for (size_t i = 0; i < bytes / kWord; ++i) {
    --words_[word + i].async_readers;
    mark_read(word + i, actor);
  }
}

}  // namespace sparsed::emulator
