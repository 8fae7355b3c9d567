// Finds every tensor that the config implies, checks its shape, and brings its bytes to their final
// place: large tensors inflate in parallel, frame by frame; raw ones are mapped.
#include <pthread.h>

#include <algorithm>
#include <atomic>
#include <cstdlib>
#include <cstring>
#include <new>

#include "engine/model.h"
#include "engine/xxh64.h"
#include "platforms/os/memory.h"
#include "platforms/os/thread_pool.h"
#include "platforms/select.h"

namespace mamba_edge {
namespace {

// One compressed frame and where its bytes go.
struct Job {
  uint32_t tensor;
  uint32_t frame;  // in the tensor's blob
  uint8_t* out;
};

// What the inflating threads share. The first failure is kept.
struct Inflation {
  const Container* container;
  const Job* jobs;
  size_t n_jobs;
  std::atomic<size_t> next{0};
  std::atomic<bool> failed{false};
  Status status;
  pthread_mutex_t mutex = PTHREAD_MUTEX_INITIALIZER;

  void fail(const Status& failure) {
    pthread_mutex_lock(&mutex);
    if (status.ok()) status = failure;
    pthread_mutex_unlock(&mutex);
    failed.store(true, std::memory_order_relaxed);
  }
};

// What one thread does: takes frames until there are none left.
void inflate_some(void* context, size_t) {
  auto& shared = *static_cast<Inflation*>(context);
  FrameReader reader(*shared.container);
  while (!shared.failed.load(std::memory_order_relaxed)) {
    const size_t i = shared.next.fetch_add(1, std::memory_order_relaxed);
    if (i >= shared.n_jobs) return;
    const Job& job = shared.jobs[i];
    const TensorEntry t = shared.container->tensor(job.tensor);
    const Status status = reader.read(t.blob, job.frame, job.out, t.name);
    if (!status.ok()) shared.fail(status);
  }
}

Status inflate(const Container& container, const Job* jobs, size_t n_jobs, int n_threads) {
  Inflation shared;
  shared.container = &container;
  shared.jobs = jobs;
  shared.n_jobs = n_jobs;
  void* memory = nullptr;
  ThreadPool* pool = nullptr;
  n_threads = static_cast<int>(std::min(static_cast<size_t>(std::max(n_threads, 1)), n_jobs));
  if (n_threads > 1) {
    // A pool that cannot be had is no reason to fail: one thread can do it all.
    memory = std::aligned_alloc(
        kBlockAlign, round_up<size_t>(ThreadPool::required_bytes(n_threads), kBlockAlign));
    if (memory != nullptr && ThreadPool::create(memory, n_threads, &pool) != 0) pool = nullptr;
  }
  if (pool != nullptr) {
    pool->run(static_cast<size_t>(n_threads), inflate_some, &shared);
    ThreadPool::destroy(pool);
  } else {
    inflate_some(&shared, 0);
  }
  std::free(memory);
  return shared.status;
}

class Loader {
 public:
  Loader(const ModelOptions& options, Model* model)
      : options_(options), m_(*model), c_(model->container) {}
  ~Loader() {
    std::free(data_);
    std::free(jobs_);
  }
  Loader(const Loader&) = delete;
  Loader& operator=(const Loader&) = delete;

  Status load() {
    ME_TRY(find_tensors());
    ME_TRY(read_tensors());
    place_tensors();
    return read_tokenizer();
  }

 private:
  Status out_of_memory(const char* what, uint64_t bytes) const {
    return Status::error(MAMBA_EDGE_OUT_OF_MEMORY, "%s: no memory for %s (%llu bytes)", c_.path(),
                         what, static_cast<unsigned long long>(bytes));
  }

  // The directory entry of canonical tensor i, checked against the config.
  Status find(uint32_t i, TensorEntry* entry, uint32_t* index) const {
    const TensorSpec spec = tensor_spec(m_.config, i);
    char name[40];
    tensor_name(spec.role, spec.layer, name);
    // Writers keep the canonical order, so the tensor is normally found at once.
    *index = i;
    if (i < c_.n_tensors()) *entry = c_.tensor(i);
    if (i >= c_.n_tensors() || entry->name != name) {
      *index = c_.n_tensors();
      for (uint32_t j = 0; j < c_.n_tensors(); ++j) {
        if (c_.tensor(j).name == name) {
          *entry = c_.tensor(j);
          *index = j;
          break;
        }
      }
      if (*index == c_.n_tensors()) {
        return Status::error(MAMBA_EDGE_BAD_FORMAT, "%s: tensor \"%s\" is missing", c_.path(),
                             name);
      }
    }
    if (entry->is_matrix != spec.is_matrix || entry->shape.rows != spec.rows ||
        entry->logical_cols != spec.cols) {
      return Status::error(MAMBA_EDGE_BAD_FORMAT,
                           "%s: tensor \"%s\" is %u x %u; the config implies %u x %u", c_.path(),
                           name, entry->shape.rows, entry->logical_cols, spec.rows, spec.cols);
    }
    if (entry->shape.rotation != 0 && is_vocabulary(spec.role)) {
      return Status::error(MAMBA_EDGE_UNSUPPORTED, "%s: tensor \"%s\" is rotated; it must not be",
                           c_.path(), name);
    }
    if (!spec.quantisable && entry->shape.type != WeightType::f32) {
      return Status::error(MAMBA_EDGE_UNSUPPORTED,
                           "%s: tensor \"%s\" is stored as %s; it must be fp32", c_.path(), name,
                           type_name(entry->shape.type));
    }
    return {};
  }

  // Checks all tensors and decides where each goes.
  Status find_tensors() {
    n_ = tensor_count(m_.config);
    data_ = static_cast<Placed*>(std::calloc(n_, sizeof(Placed)));
    if (data_ == nullptr) return out_of_memory("a list of tensors", n_ * sizeof(Placed));
    for (uint32_t i = 0; i < n_; ++i) {
      TensorEntry t;
      ME_TRY(find(i, &t, &data_[i].index));
      m_.n_parameters += published_elements(m_.config, tensor_spec(m_.config, i));
      m_.weight_bytes += t.blob.raw_bytes;
      if (t.blob.encoding == Encoding::raw) {
        m_.mapped_bytes += t.blob.raw_bytes;
      } else {
        data_[i].offset = m_.memory_bytes;
        m_.memory_bytes += round_up<uint64_t>(t.blob.raw_bytes, kBlockAlign);
        n_jobs_ += t.blob.n_frames;
      }
    }
    return {};
  }

  Status read_tensors() {
    const uint64_t total = memory_total();
    if (total != 0 && m_.memory_bytes > total) {
      return Status::error(MAMBA_EDGE_OUT_OF_MEMORY,
                           "%s: the weights need %llu MB of memory and this machine has %llu MB; "
                           "convert to a smaller "
                           "type, or with --store, which maps the file instead",
                           c_.path(), static_cast<unsigned long long>(m_.memory_bytes >> 20),
                           static_cast<unsigned long long>(total >> 20));
    }
    if (m_.memory_bytes > 0) {
      m_.memory = static_cast<uint8_t*>(memory_allocate(m_.memory_bytes));
      if (m_.memory == nullptr) return out_of_memory("the weights", m_.memory_bytes);
    }
    if (m_.mapped_bytes > 0) {
      if (const int error = file_map(c_.file(), 0, c_.file_bytes(), &m_.mapping)) {
        return Status::error(MAMBA_EDGE_IO, "%s: cannot map the file: %s", c_.path(),
                             std::strerror(error));
      }
      file_prefetch(m_.mapping);
    }
    jobs_ = static_cast<Job*>(std::calloc(n_jobs_ + 1, sizeof(Job)));
    if (jobs_ == nullptr) return out_of_memory("a list of frames", n_jobs_ * sizeof(Job));
    size_t job = 0;
    for (uint32_t i = 0; i < n_; ++i) {
      const TensorEntry t = c_.tensor(data_[i].index);
      if (t.blob.encoding == Encoding::raw) {
        data_[i].data = m_.mapping.data + c_.frame(t.blob.first_frame).offset;
        if (options_.verify && xxh64(data_[i].data, t.blob.raw_bytes) != t.blob.checksum) {
          return c_.damaged("the checksum of \"%.*s\" does not match",
                            static_cast<int>(t.name.size()), t.name.data());
        }
        continue;
      }
      uint8_t* out = m_.memory + data_[i].offset;
      data_[i].data = out;
      for (uint32_t f = 0; f < t.blob.n_frames; ++f) {
        jobs_[job++] = {data_[i].index, f, out};
        out += c_.frame(t.blob.first_frame + f).raw_bytes;
      }
    }
    return inflate(c_, jobs_, n_jobs_, options_.n_threads);
  }

  void place_tensors() {
    for (uint32_t i = 0; i < n_; ++i) {
      const TensorEntry t = c_.tensor(data_[i].index);
      place_tensor(tensor_spec(m_.config, i),
                   {t.shape, t.shape.row_block_bytes(), t.scale, data_[i].data}, &m_);
    }
  }

  Status read_tokenizer() {
    Blob blob;
    if (!c_.find_section("TOKN", &blob)) return {};
    m_.tokenizer_blob = static_cast<uint8_t*>(std::malloc(blob.raw_bytes + 1));
    if (m_.tokenizer_blob == nullptr) return out_of_memory("the tokenizer", blob.raw_bytes);
    ME_TRY(c_.read_blob(blob, m_.tokenizer_blob, "TOKN"));
    const Status opened = Tokenizer::open({m_.tokenizer_blob, blob.raw_bytes}, &m_.tokenizer);
    if (!opened.ok())
      return Status::error(opened.code(), "%s: tokenizer: %s", c_.path(), opened.message());
    m_.has_tokenizer = true;
    return {};
  }

  struct Placed {
    uint32_t index;       // in the directory
    uint64_t offset;      // in the model's memory, for inflated tensors
    const uint8_t* data;  // final place
  };

  const ModelOptions& options_;
  Model& m_;
  const Container& c_;
  uint32_t n_ = 0;
  size_t n_jobs_ = 0;
  Placed* data_ = nullptr;
  Job* jobs_ = nullptr;
};

}  // namespace

Model::~Model() {
  memory_free(memory, memory_bytes);
  file_unmap(&mapping);
  std::free(tokenizer_blob);
  delete[] weights.layers;
}

Status load_model(const char* path, const ModelOptions& options, Model* model) {
  model->kernels = select_table(options.isa);
  if (model->kernels == nullptr) {
    return Status::error(MAMBA_EDGE_INVALID_ARGUMENT,
                         "instruction set \"%s\" is none that this machine runs: %s", options.isa,
                         available_isas());
  }
  ME_TRY(Container::open(path, &model->container));
  model->config = model->container.config();
  model->layout = Layout(model->config);
  model->weights.layers = new (std::nothrow) LayerWeights[model->config.n_layer];
  if (model->weights.layers == nullptr) {
    return Status::error(MAMBA_EDGE_OUT_OF_MEMORY, "%s: out of memory", path);
  }
  return Loader(options, model).load();
}

}  // namespace mamba_edge
